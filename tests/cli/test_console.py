"""What the command prints where there is no terminal, or ASCII alone."""

import io
import os
import subprocess
import sys

import pytest
from tqdm import tqdm

from lsgm_jax.cli import console


@pytest.fixture
def log(monkeypatch):
    """Standard error as a log file, by lines."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_progress_bar_is_a_line_now_and_then(log, monkeypatch):
    """One each 15 seconds and the last one, without carriage returns; other lines stand between."""
    clock = iter(range(10_000))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.plain(), tqdm(total=100, desc="train", mininterval=0.0, miniters=1) as bar:
        for step in range(100):
            bar.update()
            if step == 50:
                tqdm.write("lsgm: warning: half", file=sys.stderr)
    text = log.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert "lsgm: warning: half" in lines
    bars = [line for line in lines if line.startswith("train:")]
    assert len(bars) == len(lines) - 1
    assert 5 <= len(bars) <= 15
    assert "100/100" in bars[-1]


def test_a_bar_that_vanishes_leaves_no_empty_line(log):
    with console.plain():
        for _ in tqdm(range(3), desc="study", leave=False):
            pass
    assert all(line.startswith("study:") for line in log.getvalue().splitlines())


@pytest.mark.parametrize("text", ["one\n", "one\n\ntwo\n", "no end", "a\n  b  \n"])
def test_other_text_passes_as_it_is(log, text):
    with console.plain():
        sys.stderr.write(text)
        sys.stderr.flush()
        assert log.getvalue() == text


def test_the_stream_is_restored_after_an_error(log):
    with pytest.raises(ZeroDivisionError), console.plain():
        print(1 / 0)
    assert sys.stderr is log


PRINTS = """
import sys
from lsgm_jax.cli.console import plain

with plain():
    for stream in (sys.stdout, sys.stderr):
        print("1.5 ± 0.5, β → 0, 数 \\udcff", file=stream)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_character_can_be_printed_on_any_console(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    expected = {
        "ascii": r"1.5 +- 0.5, \u03b2 -> 0, \u6570 \udcff",
        "latin-1": r"1.5 ± 0.5, \u03b2 -> 0, \u6570 \udcff",
        "utf-8": r"1.5 ± 0.5, β → 0, 数 \udcff",
    }
    assert done.stdout.decode(encoding) == done.stderr.decode(encoding) == f"{expected[encoding]}\n"
