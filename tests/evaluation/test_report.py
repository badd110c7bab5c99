"""report.json: entries of several commands come together, and damage drops nothing."""

import json
import subprocess
import sys

import pytest

from lsgm_jax.evaluation import report

ADD = """
import pathlib, sys
from lsgm_jax.evaluation.report import add_to_report
for number in range(20):
    add_to_report(pathlib.Path(sys.argv[1]), **{f"{sys.argv[2]}_{number}": number})
"""


def test_commands_that_write_at_the_same_time_lose_no_entry(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path), name]) for name in ("a", "b")]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert report.read_report(tmp_path) == {f"{name}_{n}": n for name in ("a", "b") for n in range(20)}


@pytest.mark.parametrize("old", ["1.5", '"nfe"', "{"])
def test_a_damaged_report_is_renamed_and_a_new_one_begins(tmp_path, capsys, old):
    """Each of these changes was another number, another name, or the loss of everything."""
    report.add_to_report(tmp_path, nfe=10, nelbo=1.5)
    path = tmp_path / "report.json"
    damaged = path.read_text().replace(old, "7.5" if old == "1.5" else "\0" * len(old))
    path.write_text(damaged)
    assert report.add_to_report(tmp_path, seed=3) == {"seed": 3}
    assert json.loads(path.read_text()) == {"seed": 3}
    assert (tmp_path / "report.json.damaged").read_text() == damaged
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lsgm: warning: {path} is damaged: ")
    assert line.endswith(": renamed to report.json.damaged, and a new report begins")
