"""Training that diverges stops with one line, keeps its checkpoints finite, and resumes with smaller learning rates."""

import csv

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lsgm_jax.cli import main as cli
from lsgm_jax.errors import ConfigError
from lsgm_jax.sampling.run import Run, holds_checkpoints
from lsgm_jax.training import loop, sharding
from lsgm_jax.training import train as training
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.nan_guard import DivergedError, require_sound
from tests import tiny

# Points in the plane and a small perceptron, which compile in seconds.
CONFIG = str(tiny.ROOT / "configs" / "cld_toy.py") + ":quick"


def train(workdir, *overrides):
    """Returns the exit status of the command."""
    short = ("train.steps=4", "train.log_every=4", "train.eval_every=1")
    overrides = [f"--config.{override}" for override in (*short, *overrides)]
    return cli.main(["train", f"--config={CONFIG}", f"--workdir={workdir}", *overrides])


def saved(workdir):
    """Returns all leaves of the newest checkpoint, and its step."""
    with Checkpoints(workdir / "checkpoints" / "score", read_only=True) as checkpoints:
        step = checkpoints.latest_step
        names = {"state": ocp.args.StandardRestore(), "ema": ocp.args.StandardRestore()}
        items = checkpoints._manager.restore(step, args=ocp.args.Composite(**names))
    return jax.tree.leaves([items["state"], items["ema"]]), step


def rows(workdir):
    return list(csv.DictReader((workdir / "metrics.csv").open()))


def lines(capsys):
    """Returns the lines on standard error besides the progress bar; standard output has to be empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return [line[line.index("lsgm: ") :] for line in captured.err.splitlines() if "lsgm: " in line]


def assert_all_finite(workdir):
    assert all(np.isfinite(leaf).all() for leaf in saved(workdir)[0])
    numbers = [row[name] for row in rows(workdir) for name in row if name not in ("stage", "split")]
    assert all(np.isfinite(float(number)) for number in numbers if number)


def spoil(monkeypatch, broken):
    """Makes the batches of these calls, counted from 1, NaN; returns a list that collects the original batches."""
    real, given = sharding.Sharded.put, []

    def put(self, batches):
        given.append(batches[0].x)
        bad = len(given) in broken
        return real(self, [jax.tree.map(lambda x: x * np.nan, batch) if bad else batch for batch in batches])

    monkeypatch.setattr(sharding.Sharded, "put", put)
    return given


def test_an_absurd_learning_rate(tmp_path, capsys):
    """The warm-up makes it zero in the first step, which is saved; every later step is not finite."""
    assert train(tmp_path, "optimiser.learning_rate=1e38") == 2
    *warnings, message = lines(capsys)
    for number, warning in enumerate(warnings, start=1):
        assert "validation at step 2 of stage score has " in warning
        assert warning.endswith(f"rolling back to step 1, with the next batches ({number} of 2 times)")
    assert len(warnings) == 2
    assert message.startswith("lsgm: error: training has diverged: validation at step 2 of stage score has ")
    assert message.endswith(
        "; with smaller learning rates the same command goes on from step 1, which is saved"
    )
    assert_all_finite(tmp_path)
    assert Run.open(tmp_path).best()[1] == 1
    before, _ = saved(tmp_path)

    assert train(tmp_path, "optimiser.learning_rate=1e-3", "optimiser.final=1e-4") == 0
    assert capsys.readouterr().out.startswith("trained in")
    assert_all_finite(tmp_path)
    assert saved(tmp_path)[1] == 4
    assert [int(row["step"]) for row in rows(tmp_path) if row["split"] == "validation"] == [1, 2, 3, 4]
    assert any(not np.array_equal(a, b) for a, b in zip(before, saved(tmp_path)[0], strict=True))


FAR = [(5e3, 10.0, True), (1.1e4, 10.0, False), (900.0, 0.0, True), (1.9e26, -3.0, False), (-1e9, 5.0, True)]


@pytest.mark.parametrize(("score", "first", "sound"), [*FAR, (1e9, None, True)])
def test_losses_far_above_the_first_are_divergence(score, first, sound):
    """A learning rate that is much too large need not end in NaN."""
    check = lambda: require_sound({"nelbo": score}, "nelbo", first, "validation at step 9")
    if sound:
        return check()
    with pytest.raises(DivergedError, match=r"validation at step 9 has nelbo=.*, after .* in the first step"):
        check()


def test_a_loss_that_explodes_without_nan_is_said(tmp_path, capsys, monkeypatch):
    """Training stops with one line, and no checkpoint is left."""
    real = loop.require_sound
    exploded = lambda scores, name, first, where: real({name: abs(first) * 2e3 + 2e3}, name, first, where)
    monkeypatch.setattr(loop, "require_sound", exploded)
    assert train(tmp_path, "train.rollbacks=0") == 2
    (message,) = lines(capsys)
    assert "training has diverged: validation at step 1 of stage score has nelbo=" in message
    assert not holds_checkpoints(tmp_path)


def test_a_non_finite_batch_is_skipped(tmp_path, capsys, monkeypatch):
    """With one warning and one count; the parameters stay those of the step before."""
    spoil(monkeypatch, {2})
    assert train(tmp_path, "train.log_every=1") == 0
    captured = capsys.readouterr()
    (warning,) = (line for line in captured.err.splitlines() if "lsgm: " in line)
    assert "lsgm: warning: step 2 of stage score is skipped (loss=nan, gradient norm=nan)" in warning
    assert_all_finite(tmp_path)
    counts = {int(row["step"]): row["skipped"] for row in rows(tmp_path) if row["split"] == "train"}
    assert counts == {1: "0", 2: "1", 3: "1", 4: "1"}
    assert saved(tmp_path)[1] == 4


def test_several_non_finite_batches_roll_back_to_the_last_checkpoint_with_other_data(
    tmp_path, capsys, monkeypatch
):
    given = spoil(monkeypatch, {3, 4})
    assert train(tmp_path, "train.patience=2", "train.eval_every=2", "train.steps=6") == 0
    captured = capsys.readouterr()
    skipped, rollback = (line for line in captured.err.splitlines() if "lsgm: warning" in line)
    assert "step 3 of stage score is skipped" in skipped
    path = tmp_path / "faults" / "score-4.npz"
    assert (
        "2 steps in a row to step 4 of stage score had a non-finite loss or gradient (loss=nan, " in rollback
    )
    assert rollback.endswith(
        f"batch is kept in {path}; rolling back to step 2, with the next batches (1 of 2 times)"
    )

    kept = np.load(path)
    np.testing.assert_array_equal(kept["x"], given[3])
    assert kept["step"] == 4
    k_stage = jax.random.split(jax.random.key(0), 2)[1]
    expected = jax.random.fold_in(k_stage, 3)
    np.testing.assert_array_equal(kept["key"], jax.random.key_data(expected))

    # Steps 3 to 6 took the fifth to eighth batch.
    assert len(given) == 8
    assert len({batch.tobytes() for batch in given}) == 8
    assert saved(tmp_path)[1] == 6
    assert [int(row["step"]) for row in rows(tmp_path) if row["split"] == "validation"] == [2, 4, 6]
    assert_all_finite(tmp_path)


@pytest.mark.parametrize(
    ("broken_at", "saved_at", "remedy"),
    [(1, None, "starts this stage again"), (3, 2, "goes on from step 2, which is saved")],
)
def test_training_stops_after_the_last_rollback(tmp_path, capsys, monkeypatch, broken_at, saved_at, remedy):
    """The error says from where the same command resumes: the last checkpoint, or the beginning."""
    spoil(monkeypatch, range(broken_at, 100))
    assert train(tmp_path, "train.patience=1", "train.rollbacks=1", "train.eval_every=2") == 2
    rollback, message = lines(capsys)
    where = "step 2" if saved_at else "the beginning, with other batches"
    assert f"rolling back to {where}" in rollback
    assert f"training has diverged: 1 steps in a row to step {broken_at} of stage score" in message
    assert message.endswith(f"with smaller learning rates the same command {remedy}")
    assert holds_checkpoints(tmp_path) == (saved_at is not None)
    if saved_at:
        assert saved(tmp_path)[1] == saved_at
        assert_all_finite(tmp_path)


@pytest.mark.parametrize("section", ["vae_stage", "joint_vae", "joint_prior"])
def test_learning_rates_of_a_run_may_change(tmp_path, section):
    """Other fields of an optimiser may not."""
    (tmp_path / "checkpoints" / "vae" / "1").mkdir(parents=True)
    training.claim(tmp_path, tiny.config(""))
    for field in ("learning_rate", "final"):
        training._refuse_another_run(tmp_path, tiny.config("", f"--config.{section}.{field}=1e-6"))
    with pytest.raises(
        ConfigError, match=rf"holds a run with {section}\.warmup=100, not 7: use the same config"
    ):
        training._refuse_another_run(tmp_path, tiny.config("", f"--config.{section}.warmup=7"))


def test_every_optimiser_may_change_its_rate():
    """Of whichever model: a first stage of latent diffusion may diverge as well."""
    sections = {"vae_stage", "joint_vae", "joint_prior", "first_stage", "optimiser"}
    assert sections == training.OPTIMISERS
    assert {f"{name}.learning_rate" for name in sections} <= set(training.MAY_CHANGE)
