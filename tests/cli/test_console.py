"""What the command prints where there is no terminal, or ASCII alone."""

import os
import subprocess
import sys

import pytest
from tqdm import tqdm

from lsgm_jax.cli import console


def test_a_progress_bar_is_a_line_now_and_then(capsys, monkeypatch):
    """One each 15 seconds and the last one, without carriage returns; other lines stand between."""
    clock = iter(range(10_000))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.plain(), tqdm(total=100, desc="train", mininterval=0.0, miniters=1) as bar:
        for step in range(100):
            bar.update()
            if step == 50:
                tqdm.write("lsgm: warning: half", file=sys.stderr)
    text = capsys.readouterr().err
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert "lsgm: warning: half" in lines
    bars = [line for line in lines if line.startswith("train:")]
    assert len(bars) == len(lines) - 1
    assert 5 <= len(bars) <= 15
    assert "100/100" in bars[-1]


def test_a_bar_that_vanishes_leaves_no_empty_line(capsys):
    with console.plain():
        for _ in tqdm(range(3), desc="study", leave=False):
            pass
    assert all(line.startswith("study:") for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("text", ["one\n", "one\n\ntwo\n", "no end", "a\n  b  \n"])
def test_other_text_passes_as_it_is(capsys, text):
    with console.plain():
        sys.stderr.write(text)
        sys.stderr.flush()
        assert capsys.readouterr().err == text


def test_the_stream_is_restored_after_an_error():
    before = sys.stderr
    with pytest.raises(ZeroDivisionError), console.plain():
        print(1 / 0)
    assert sys.stderr is before


PRINTS = """
import sys
from lsgm_jax.cli.console import plain

with plain():
    for stream in (sys.stdout, sys.stderr):
        print("1.5 \\xb1 0.5, \\u03b2 \\u2192 0, \\u6570 \\udcff", file=stream)
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
