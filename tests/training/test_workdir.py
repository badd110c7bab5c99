"""The folder of a run: one config, one writer, and training that goes on for longer."""

import csv
import json
import os
import pathlib
import shutil
import signal
import socket

import pytest

from lsgm_jax.cli import main as cli
from lsgm_jax.locks import locked
from lsgm_jax.sampling.run import CONFIG, Run
from lsgm_jax.training.checkpoint_record import read_record
from tests.tiny import ROOT
from tests.training.test_divergence import saved

SHORT = ("train.steps=8", "train.log_every=2", "train.eval_every=4", "train.keep=3", "optimiser.final=1e-4")


def train(workdir, *overrides):
    """Trains on points in the plane; returns the exit status."""
    overrides = [f"--config.{override}" for override in (*SHORT, *overrides)]
    return cli.main(
        ["train", f"--config={ROOT}/configs/cld_toy.py:quick", f"--workdir={workdir}", *overrides]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "finished"
    assert train(workdir) == 0
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def content(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_a_finished_run_says_so_and_is_not_changed(run, capsys):
    before = content(run)
    assert train(run) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{run} has finished already, all 8 steps; validation chose step ")
    assert content(run) == before


def test_a_finished_run_is_trained_for_longer(run, capsys):
    assert train(run, "train.steps=12") == 0
    steps = [row["step"] for row in csv.DictReader((run / "metrics.csv").open()) if row["split"] == "train"]
    assert steps == ["2", "4", "6", "8", "10", "12"]
    assert saved(run)[1] == 12
    assert Run.open(run).config.train.steps == 12
    assert train(run, "train.steps=8") == 2
    message = f"config.train.steps=8: {run}/checkpoints/score has 12 steps already; give at least these"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["seed", "{", None], ids=["a digit", "no JSON", "lost"])
def test_a_damaged_config_is_restored_by_the_same_command_alone(run, damage, capsys):
    """The config of the checkpoints decides whether it is the same."""
    path = run / CONFIG
    good = path.read_text()
    bad = {"seed": good.replace('"seed": 0', '"seed": 1'), "{": good.replace("{", "(", 1)}.get(damage)
    path.unlink() if bad is None else path.write_text(bad)
    assert cli.main(["sample", f"--workdir={run}", "--count=2"]) == 2
    error = capsys.readouterr().err
    assert ("is damaged" in error) == (damage is not None)
    assert "lsgm train" in error
    assert train(run, "seed=1") == 2
    assert f"{run} holds a run with seed=0, not 1: use the same config" in capsys.readouterr().err
    assert train(run) == 0
    assert path.read_text() == good


def test_another_config_is_refused_before_anything_is_written(run, capsys):
    """Also in the folder of a run that has no checkpoint yet."""
    shutil.rmtree(run / "checkpoints")
    before = content(run)
    assert train(run, "seed=1") == 2
    assert "holds a run with seed=0, not 1" in capsys.readouterr().err
    assert content(run) == before


def test_a_second_training_is_refused_and_the_run_stays_as_it_is(run, capsys):
    with locked(run, "trained", "choose another --workdir"):
        before = content(run)
        assert train(run, "train.steps=12") == 2
        assert content(run) == before
    (line,) = capsys.readouterr().err.splitlines()
    by = f"process {os.getpid()} on {socket.gethostname()}"
    assert line == (
        f"lsgm: error: {run} is being trained by {by}: wait until it ends, or choose another --workdir"
    )
    assert not (run / ".lock").exists()


def test_a_folder_that_is_moved_while_it_is_trained_ends_the_training(run, capsys, monkeypatch):
    """Nothing is built where it was."""
    moved = run.with_name("moved")
    monkeypatch.setattr(
        "lsgm_jax.training.trace.Trace.step", lambda self, number, result: number == 10 and run.rename(moved)
    )
    assert train(run, "train.steps=12") == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(f"lsgm: error: {run} has been moved or deleted: put it back, and the same command goes on")
    )
    assert not run.exists()
    monkeypatch.undo()
    moved.rename(run)
    assert train(run, "train.steps=12") == 0


def test_the_home_folder_is_found_in_every_path(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "cld_toy.py", tmp_path / "configs")
    shutil.copytree(finished, tmp_path / "runs" / "a")
    overrides = [f"--config.{override}" for override in SHORT]
    assert cli.main(["train", "--config=~/configs/cld_toy.py:quick", "--workdir=~/runs/a", *overrides]) == 0
    assert f"{tmp_path}/runs/a has finished already" in capsys.readouterr().out
    assert cli.main(["sample", "--workdir=~/runs/a", "--count=2", "--solver=Heun", "--steps=2"]) == 0
    assert (tmp_path / "runs" / "a" / "samples.npz").exists()
    assert Run.open(pathlib.Path("~/runs/a")).workdir == tmp_path / "runs" / "a"
    assert not (tmp_path / "~").exists()
    assert cli.main(["sample", "--workdir=~nobody-of-this-name/a"]) == 2
    assert "~nobody-of-this-name/a" in capsys.readouterr().err


def test_ctrl_c_saves_the_step(run, monkeypatch, capsys):
    monkeypatch.setattr(
        "lsgm_jax.training.trace.Trace.step",
        lambda self, number, result: number == 10 and signal.raise_signal(signal.SIGINT),
    )
    assert train(run, "train.steps=12") == 130
    assert "lsgm: stopped by SIGINT; step 10 of stage score is saved" in capsys.readouterr().err
    assert read_record(run / "checkpoints" / "score" / "10")["score"] is None
    monkeypatch.undo()
    assert train(run, "train.steps=12") == 0
    assert json.loads((run / CONFIG).read_text())["train"]["steps"] == 12
