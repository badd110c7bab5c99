"""A run begun on eight devices with a sharded state resumes on one device, and on two processes."""

import shutil

import jax
import numpy as np
import pytest

from lsgm_jax.cli import main as cli
from lsgm_jax.config.load import load_config
from lsgm_jax.training.checkpoint import Checkpoints
from tests import on_one_machine, tiny
from tests.training.test_divergence import CONFIG, rows

LENGTH = ("train.steps=12", "train.log_every=2", "train.eval_every=6")
SHARDED = ("parallel.name=fsdp", "parallel.smallest=1")


def command(workdir, *overrides):
    return [
        "train",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        *(f"--config.{o}" for o in (*LENGTH, *overrides)),
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run on one device, uninterrupted."""
    workdir = tmp_path_factory.mktemp("straight")
    assert cli.main(command(workdir)) == 0
    return workdir


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run on eight devices, with the checkpoint in the middle as its last."""
    workdir = tmp_path_factory.mktemp("begun")
    on_one_machine.run_alone("lsgm_jax.cli", *command(workdir, *SHARDED), devices=8)
    shutil.rmtree(workdir / "checkpoints" / "score" / "12")
    return workdir


def assert_close(workdir, straight):
    """Asserts equality up to rounding of the last checkpoint and of metrics.csv."""
    (leaves, step), (expected, last) = restored(workdir), restored(straight)
    assert step == last == 12
    for leaf, same in zip(leaves, expected, strict=True):
        np.testing.assert_allclose(leaf, same, rtol=1e-5, atol=1e-5)
    for row, same in zip(rows(workdir), rows(straight), strict=True):
        assert [row[name] for name in ("stage", "step", "split")] == [
            same[name] for name in ("stage", "step", "split")
        ]
        np.testing.assert_allclose(float(row["nelbo"]), float(same["nelbo"]), rtol=1e-4)


def restored(workdir):
    """Returns all leaves of the newest checkpoint, on the device of this process, and its step."""
    like = tiny.training_state(load_config(CONFIG, []))
    with Checkpoints(workdir / "checkpoints" / "score", read_only=True) as checkpoints:
        state, _ = checkpoints.restore(like)
    return jax.tree.leaves(state), int(state.step)


def test_it_resumes_on_one_device(straight, begun, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(begun, workdir)
    assert jax.device_count() == 1
    assert cli.main(command(workdir)) == 0
    assert_close(workdir, straight)


@pytest.mark.parametrize(
    "overrides", [pytest.param((), id="data"), pytest.param(SHARDED, id="fsdp", marks=pytest.mark.slow)]
)
def test_it_resumes_on_two_processes(straight, begun, tmp_path, overrides):
    """The first one reports; both save their shards to one folder, so they take the same steps."""
    workdir = tmp_path / "run"
    shutil.copytree(begun, workdir)
    first, second = on_one_machine.run_lsgm(command(workdir, *overrides), processes=2, devices=4)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert "validation chose step" in first.out
    assert "validation chose step" not in second.out
    assert_close(workdir, straight)


def test_a_model_trained_on_eight_devices_is_sampled_on_one(begun, capsys):
    """One device and eight draw the same points from the same noise."""
    arguments = ["sample", f"--workdir={begun}", "--count=10", "--solver=Heun", "--steps=4"]
    assert cli.main(arguments) == 0
    capsys.readouterr()
    here = np.load(begun / "samples.npz")["x"]
    on_one_machine.run_alone("lsgm_jax.cli", *arguments, devices=8)
    there = np.load(begun / "samples.npz")["x"]
    assert here.shape == (10, 2)
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-5)
