"""An interrupted and resumed run equals the uninterrupted run, bit for bit."""

import csv
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lsgm_jax.errors import CheckpointError
from lsgm_jax.nn.penalised import penalised
from lsgm_jax.sampling.run import Run
from lsgm_jax.training import sharding
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.train import train as run_training
from tests import tiny

SHORT = (
    "--config.train.vae_steps=6",
    "--config.train.steps=6",
    "--config.train.log_every=1",
    "--config.train.eval_every=2",
    # Checkpoints hold singular vectors too: of all convolutions of the VAE, of none of the prior.
    "--config.vae_penalty.weight=1e-2",
    "--config.joint_vae_penalty.weight=1e-2",
    "--config.joint_prior_penalty.weight=1e-2",
    "--config.joint_prior_penalty.spectral=False",
)


class Killed(Exception):
    """Stands in for SIGKILL: nothing is saved afterwards."""


def train(workdir, data_dir, monkeypatch=None, die_at=None):
    """Trains; with `die_at` = (stage, step) the run dies before that step."""
    if die_at is not None:
        real = sharding.Sharded.put
        count = {"vae": 0, "joint": 0}
        order = ["vae"] * 6 + ["joint"] * 6
        taken = iter(order)

        def dying(self, batches):
            stage = next(taken)
            count[stage] += 1
            if (stage, count[stage]) == die_at:
                raise Killed
            return real(self, batches)

        monkeypatch.setattr(sharding.Sharded, "put", dying)
    run_training(tiny.config(data_dir, *SHORT), workdir)


def final_state(workdir):
    folder = workdir / "checkpoints" / "joint"
    with Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.latest_step
        names = {"state": ocp.args.StandardRestore(), "ema": ocp.args.StandardRestore()}
        items = checkpoints._manager.restore(
            step, args=ocp.args.Composite(**names, meta=ocp.args.JsonRestore())
        )
    return items["state"], items["ema"], items["meta"]["data"]


def rows(workdir):
    table = list(csv.DictReader((workdir / "metrics.csv").open()))
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in table]


@pytest.fixture(scope="module")
def straight(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("straight")
    train(workdir, data_dir)
    return workdir


@pytest.mark.slow
def test_the_state_has_singular_vectors(straight):
    """One pair for each convolution of the VAE, none for the prior."""
    memory, params = final_state(straight)[0]["memory"], final_state(straight)[0]["params"]
    assert memory["vae"].keys() == penalised(params["vae"]).kernels.keys()
    assert not memory.get("prior")
    for pair in memory["vae"].values():
        np.testing.assert_allclose([np.linalg.norm(pair["u"]), np.linalg.norm(pair["v"])], 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "die_at", [("vae", 4), ("joint", 1), pytest.param(("joint", 6), marks=pytest.mark.slow)], ids=str
)
def test_a_resumed_run_equals_an_uninterrupted_one(straight, tmp_path, data_dir, monkeypatch, die_at):
    with pytest.raises(Killed):
        train(tmp_path, data_dir, monkeypatch, die_at)
    monkeypatch.undo()
    train(tmp_path, data_dir)
    tiny.assert_trees_equal(final_state(straight), final_state(tmp_path))
    assert rows(straight) == rows(tmp_path)


def test_running_again_changes_nothing(straight, tmp_path, data_dir):
    shutil.copytree(straight, tmp_path / "again")
    train(tmp_path / "again", data_dir)
    tiny.assert_trees_equal(final_state(straight), final_state(tmp_path / "again"))
    assert rows(straight) == rows(tmp_path / "again")


def test_best_parameters_are_those_of_the_lowest_validation_nelbo(straight):
    scores = {
        int(r["step"]): float(r["nelbo"])
        for r in rows(straight)
        if r["split"] == "validation" and r["stage"] == "joint"
    }
    opened = Run.open(straight)
    params, step = opened.best("joint")
    assert step == min(scores, key=scores.get)
    fresh = jax.eval_shape(opened.model.init, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(fresh)


def test_a_damaged_checkpoint_is_named(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "damaged")
    for path in (tmp_path / "damaged" / "checkpoints" / "joint").rglob("*"):
        if path.is_file() and "ema" in path.parts and path.parent.name == "d":
            path.write_bytes(b"damaged")
    with pytest.raises(
        CheckpointError,
        match=r"checkpoints/joint/\d+ cannot be read, nor any other .*rename \S*joint, and  lsgm train",
    ):
        Run.open(tmp_path / "damaged").best("joint")


def test_a_missing_checkpoint_says_what_to_run(straight, tmp_path):
    (tmp_path / "config.json").write_text((straight / "config.json").read_text())
    with pytest.raises(CheckpointError, match="run  lsgm train"):
        Run.open(tmp_path).best("joint")


def test_an_interrupted_save_is_ignored(straight, tmp_path, data_dir):
    """A checkpoint that orbax was writing when the process died is ignored and deleted."""
    shutil.copytree(straight, tmp_path / "half")
    folder = tmp_path / "half" / "checkpoints" / "joint"
    half = folder / "8.orbax-checkpoint-tmp"
    shutil.copytree(folder / "6", half)
    (half / "commit_success.txt").unlink(missing_ok=True)
    train(tmp_path / "half", data_dir)
    tiny.assert_trees_equal(final_state(straight), final_state(tmp_path / "half"))
    assert not pathlib.Path(half).exists()


def test_metrics_are_finite(straight):
    values = [float(row["nelbo"]) for row in rows(straight)]
    assert len(values) == 2 * (6 + 3)
    assert np.isfinite(values).all()
