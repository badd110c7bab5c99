"""A flipped byte or a truncation of any file of a checkpoint is noticed: never other numbers."""

import pathlib
import random
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgm_jax.errors import CheckpointError
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.state import create_state
from tests import tiny

OPTIMISER = optax.adam(0.1)
META = {"config": {"seed": 0, "data": {"batch_size": 2}}, "data": {"position": [1, 2]}}


def state_of(step):
    """A state whose numbers depend on the step; compressible and incompressible arrays."""
    rng = np.random.default_rng(step)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(8, 16)), jnp.float32),
        "flat": jnp.full((64,), float(step)),
        "count": jnp.asarray(step, jnp.int32),
    }
    return create_state(params, OPTIMISER).replace(step=jnp.asarray(step, jnp.int32))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three checkpoints, the best one in the middle."""
    folder = tmp_path_factory.mktemp("run") / "score"
    with Checkpoints(folder, keep=3) as checkpoints:
        for step, score in ((1, 3.0), (2, 1.0), (3, 2.0)):
            checkpoints.save(state_of(step), META | {"data": {"position": step}}, score)
    return folder


def damaged(content, rng):
    """Returns the content with a byte flipped, truncated, or with a block of zeros, as disks and copies leave them."""
    kind = rng.choice(["bit", "bit", "byte", "truncated", "zeros"])
    position = rng.randrange(len(content))
    if kind == "truncated":
        return content[:position]
    changed = bytearray(content)
    if kind == "zeros":
        changed[position : position + 64] = bytes(len(content[position : position + 64]))
    else:
        changed[position] ^= 1 << rng.randrange(8) if kind == "bit" else rng.randrange(1, 256)
    return bytes(changed)


def read_both(folder):
    """Returns what a reader and a training get, each the state of one step, and with which step and position."""
    like = jax.eval_shape(lambda: state_of(1))
    with Checkpoints(folder, read_only=True) as checkpoints:
        ema, step = checkpoints.restore_best(like.ema)
        tiny.assert_trees_equal(ema, state_of(step).ema)
    with Checkpoints(folder, keep=3) as checkpoints:
        state, meta = checkpoints.restore(like)
    tiny.assert_trees_equal(state, state_of(int(state.step)))
    assert meta["data"] == {"position": int(state.step)}
    assert meta["config"] == META["config"]
    return step, int(state.step)


def try_damage(saved, workdir, rng, monkeypatch):
    """Damages a file of any checkpoint; returns whether that was noticed."""
    shutil.copytree(saved, workdir / "score")
    files = sorted(path for path in saved.glob("[23]/**/*") if path.is_file() and path.stat().st_size)
    path = workdir / "score" / rng.choice(files).relative_to(saved)
    before = path.read_bytes()
    path.write_bytes(damaged(before, rng))
    if path.read_bytes() == before:
        return False
    said = []
    monkeypatch.setattr("lsgm_jax.training.checkpoint.warn", said.append)
    try:
        best, newest = read_both(workdir / "score")
    except CheckpointError:
        return True
    finally:
        shutil.rmtree(workdir)
    if (best, newest) != (2, 3):
        assert said, f"{path}: steps {best} and {newest} were taken without a word"
    return bool(said)


@pytest.mark.parametrize("count", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_no_damage_gives_other_numbers(saved, tmp_path, count, monkeypatch):
    monkeypatch.setattr("lsgm_jax.training.checkpoint.SECONDS_TO_DELETE", 0.0)
    rng = random.Random(count)
    noticed = [try_damage(saved, tmp_path / str(index), rng, monkeypatch) for index in range(count)]
    print(
        f"{count} damaged files: {sum(noticed)} noticed, {count - sum(noticed)} without effect, 0 other numbers"
    )
    assert any(noticed)


def test_the_damaged_record_of_the_best_checkpoint_is_said(saved, tmp_path, monkeypatch):
    """Without it nobody knows that it was the best; the next best must not take its place in silence."""
    said = []
    monkeypatch.setattr("lsgm_jax.training.checkpoint.warn", said.append)
    monkeypatch.setattr("lsgm_jax.training.checkpoint.SECONDS_TO_DELETE", 0.0)
    shutil.copytree(saved, tmp_path / "score")
    record = tmp_path / "score" / "2" / "meta" / "metadata"
    record.write_bytes(record.read_bytes().replace(b'"score": 1.0', b'"score": 5.0'))
    assert read_both(tmp_path / "score") == (3, 3)
    assert re.search(r"checkpoint .*/2 is damaged .*; step 3 is taken", said[0])


def test_undamaged_checkpoints_are_read(saved):
    assert read_both(saved) == (2, 3)


@pytest.mark.parametrize("content", ['{"nelbo": 0.5}', "{", None], ids=["another", "damaged", "lost"])
def test_the_score_is_the_one_of_the_record(saved, tmp_path, content):
    """Whatever stands where orbax reads it: a reader changes nothing there, a training mends it."""
    folder = tmp_path / "score"
    shutil.copytree(saved, folder)
    path = folder / "3" / "metrics" / "metrics"
    path.unlink() if content is None else path.write_text(content)
    assert read_both(folder) == (2, 3)
    assert path.read_text() == '{"nelbo": 2.0}'


def test_a_checkpoint_that_vanishes_while_it_is_read_is_looked_up_again(saved, tmp_path, monkeypatch):
    """A training deletes the best and the newest one, because it has written a better one."""
    folder, aside = tmp_path / "score", tmp_path / "aside"
    shutil.copytree(saved, folder)
    shutil.move(folder / "2", aside)
    like = jax.eval_shape(lambda: state_of(1))
    read = Checkpoints._read

    def vanishing(self, step, **items):
        if aside.exists():
            shutil.move(aside, folder / "2")
            shutil.rmtree(folder / "1")
            shutil.rmtree(folder / "3")
        return read(self, step, **items)

    monkeypatch.setattr(Checkpoints, "_read", vanishing)
    with Checkpoints(folder, read_only=True) as checkpoints:
        ema, step = checkpoints.restore_best(like.ema)
    assert step == 2
    tiny.assert_trees_equal(ema, state_of(2).ema)


def test_a_folder_that_is_empty_for_a_moment_is_looked_up_again(saved, tmp_path, monkeypatch):
    """So it looks to a reader if the newest checkpoint takes the place of the others while it lists them."""
    folder, looks = tmp_path / "score", iter([[], [], [2]])
    shutil.copytree(saved, folder)
    monkeypatch.setattr(Checkpoints, "_best_first", lambda self: next(looks))
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.restore_best(jax.eval_shape(lambda: state_of(1)).ema)[1] == 2


def test_a_folder_without_checkpoints_says_what_to_run(tmp_path):
    (tmp_path / "score").mkdir()
    with (
        pytest.raises(CheckpointError, match=r"no checkpoint in .*: run  lsgm train"),
        Checkpoints(tmp_path / "score", read_only=True) as checkpoints,
    ):
        checkpoints.restore_best(jax.eval_shape(lambda: state_of(1)).ema)


def test_a_changed_array_is_named(saved, tmp_path, monkeypatch):
    """And the remedy destroys nothing."""
    monkeypatch.setattr("lsgm_jax.training.checkpoint.SECONDS_TO_DELETE", 0.0)
    folder = tmp_path / "score"
    shutil.copytree(saved, folder)
    like = jax.eval_shape(lambda: state_of(1))
    read = Checkpoints._read

    def flipped(self, step, **items):
        found = read(self, step, **items)
        found["ema"]["kernel"] = found["ema"]["kernel"].at[3, 5].multiply(1.0 + 1e-6)
        return found

    monkeypatch.setattr(Checkpoints, "_read", flipped)
    with (
        pytest.raises(
            CheckpointError, match=r"1 arrays of ema are not what was saved: \['kernel'\]"
        ) as caught,
        Checkpoints(folder, read_only=True) as checkpoints,
    ):
        checkpoints.restore_best(like.ema)
    assert f"rename {folder}, and  lsgm train  trains this stage again" in str(caught.value)
    assert sorted(path.name for path in pathlib.Path(folder).glob("[0-9]*")) == ["1", "2", "3"]
