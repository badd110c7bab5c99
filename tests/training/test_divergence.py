"""A training that diverges stops in one line, spoils nothing that is saved, and goes on with smaller learning rates."""

import csv

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lsgm_jax import cli, run
from lsgm_jax.schema import ConfigError
from lsgm_jax.training import loop
from lsgm_jax.training.checkpoint import Checkpoints
from tests import tiny

CONFIG = (
    str(tiny.ROOT / "configs" / "cld_toy.py") + ":quick"
)  # points and a small perceptron: seconds to compile


def train(workdir, *overrides):
    """The command's exit status."""
    short = ("train.steps=4", "train.log_every=4", "train.eval_every=1")
    overrides = [f"--config.{override}" for override in (*short, *overrides)]
    return cli.main(["train", f"--config={CONFIG}", f"--workdir={workdir}", *overrides])


def saved(workdir):
    """All leaves of the newest checkpoint, and its step."""
    with Checkpoints(workdir / "checkpoints" / "score", read_only=True) as checkpoints:
        step = checkpoints.latest_step
        names = {"state": ocp.args.StandardRestore(), "ema": ocp.args.StandardRestore()}
        items = checkpoints._manager.restore(step, args=ocp.args.Composite(**names))
    return jax.tree.leaves([items["state"], items["ema"]]), step


def rows(workdir):
    return list(csv.DictReader((workdir / "metrics.csv").open()))


def one_line(capsys):
    """On standard error, beside the progress bar; nothing may be on standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    (message,) = (line for line in captured.err.splitlines() if line.startswith("lsgm: "))
    return message


def assert_all_finite(workdir):
    assert all(np.isfinite(leaf).all() for leaf in saved(workdir)[0])
    numbers = [row[name] for row in rows(workdir) for name in row if name not in ("stage", "split")]
    assert all(np.isfinite(float(number)) for number in numbers if number)


def test_an_absurd_learning_rate(tmp_path, capsys):
    """It is zero in the first step, which is saved; then nothing is a number any more."""
    assert train(tmp_path, "optimiser.learning_rate=1e38") == 2
    message = one_line(capsys)
    assert message.startswith("lsgm: error: ")
    assert "at step 2 of stage score: training has diverged; with smaller learning rates" in message
    assert message.endswith("the same command goes on from step 1, which is saved")
    assert_all_finite(tmp_path)
    assert run.Run.open(tmp_path).best()[1] == 1
    before, _ = saved(tmp_path)

    assert train(tmp_path, "optimiser.learning_rate=1e-3", "optimiser.final=1e-4") == 0
    assert capsys.readouterr().out.startswith("trained in")
    assert_all_finite(tmp_path)
    assert saved(tmp_path)[1] == 4
    assert [int(row["step"]) for row in rows(tmp_path) if row["split"] == "validation"] == [1, 2, 3, 4]
    assert any(not np.array_equal(a, b) for a, b in zip(before, saved(tmp_path)[0], strict=True))


@pytest.mark.parametrize(
    ("broken_at", "saved_at", "remedy"),
    [(1, None, "starts this stage again"), (3, 2, "goes on from step 2, which is saved")],
)
def test_a_batch_that_is_no_number(tmp_path, capsys, monkeypatch, broken_at, saved_at, remedy):
    """Found at the next checkpoint, though the log has no row there; or before there is any."""
    real, count = loop.put_batch, iter(range(1, 100))

    def put_batch(mesh, batch):
        return real(mesh, jax.tree.map(lambda x: x * np.nan if next(count) == broken_at else x, batch))

    monkeypatch.setattr(loop, "put_batch", put_batch)
    assert train(tmp_path) == 2
    message = one_line(capsys)
    assert f"at step {broken_at} of stage score: training has diverged" in message
    assert message.endswith(f"the same command {remedy}")
    assert run.holds_checkpoints(tmp_path) == (saved_at is not None)
    if saved_at:
        assert saved(tmp_path)[1] == saved_at
        assert_all_finite(tmp_path)


@pytest.mark.parametrize("section", ["vae_stage", "joint_vae", "joint_prior"])
def test_learning_rates_of_a_run_may_change(tmp_path, section):
    """And nothing else of an optimiser."""
    (tmp_path / "checkpoints" / "vae" / "1").mkdir(parents=True)
    run.claim(tmp_path, tiny.config(""))
    for field in ("learning_rate", "final"):
        run.refuse_another_run(tmp_path, tiny.config("", f"--config.{section}.{field}=1e-6"))
    with pytest.raises(
        ConfigError, match=rf"holds a run with {section}\.warmup=100, not 7: use the same config"
    ):
        run.refuse_another_run(tmp_path, tiny.config("", f"--config.{section}.warmup=7"))
