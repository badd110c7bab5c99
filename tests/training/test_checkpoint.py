"""A checkpoint holds the state at the time of saving; checkpoints of older formats are restored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgm_jax.errors import CheckpointError
from lsgm_jax.nn.network import Aux
from lsgm_jax.training import checkpoint_record, optim, sharding
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.devices import place
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import EMA, make_step
from tests import tiny


def drift(params, batch, context):
    """A loss whose gradient changes every parameter in every step."""
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), Aux({}, {})


def test_a_checkpoint_does_not_see_later_steps(tmp_path):
    """They reuse the donated buffers of the state while the checkpoint is written in the background."""
    params = {name: jnp.full((512, 1024), index, jnp.float32) for index, name in enumerate("abcdefgh")}
    optimiser, launcher = optax.sgd(1.0), sharding.whole()
    state = place(launcher.mesh, create_state(params, optimiser))
    step = launcher.compile(make_step(drift, optimiser, EMA(0.5)), state)
    key = place(launcher.mesh, jax.random.key(0))
    batch = launcher.put([np.zeros((jax.device_count(), 1), np.float32)])
    with Checkpoints(tmp_path) as checkpoints:
        for _ in range(4):
            state, _ = step(state, batch, key)
            expected = jax.tree.map(np.array, state)
            checkpoints.save(state, {"data": {}}, score=-float(state.step))
            for _ in range(20):
                state, _ = step(state, batch, key)
            restored, _ = checkpoints.restore(state)
            tiny.assert_trees_equal(restored, expected)


OPTIMISER = optim.per_part(
    {"vae": optim.Adamax(learning_rate=0.1, warmup=0)(100)}, optim.AdamW(learning_rate=0.1, warmup=0)(100)
)


def train(state, steps, key):
    """Takes steps of a loss with non-trainable state; its key in the parameters is `key`."""

    def loss(params, batch, context):
        vae = params["vae"]
        count = vae[key]["batch_stats"]["count"] + 1.0
        value = jnp.sum((vae["net"] - count) ** 2) + jnp.sum(params["score_net"]["kernel"] ** 2)
        return value, Aux({}, {"vae": {key: {"batch_stats": {"count": count}}}}, memory={"last": count})

    step = jax.jit(make_step(loss, OPTIMISER, EMA(0.9)))
    for _ in range(steps):
        state, _ = step(state, None, jax.random.key(0))
    return state


def fresh(key):
    """Returns the state before the first step; the optimiser state has dictionaries with `key` too."""
    params = {
        "vae": {"net": jnp.linspace(-1.0, 1.0, 5), key: {"batch_stats": {"count": jnp.zeros(())}}},
        "score_net": {"kernel": jnp.ones((2, 2)), key: {"constants": jnp.arange(3.0)}},
    }
    return create_state(params, OPTIMISER, {"last": jnp.zeros(())})


def save_in_format(number, folder, monkeypatch):
    """Writes a checkpoint of step 3 as older versions did; returns its state."""
    monkeypatch.setattr(checkpoint_record, "FORMAT", number)
    state = train(fresh("carried"), 3, "carried")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, {"data": {}}, score=1.0)
    monkeypatch.undo()
    return state


def test_training_resumes_from_a_checkpoint_of_format_2(tmp_path, monkeypatch):
    """Non-trainable state had another key there, also in the optimiser state. Bit for bit."""
    save_in_format(2, tmp_path, monkeypatch)
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(jax.eval_shape(lambda: fresh("state")))
    assert jax.tree.structure(restored) == jax.tree.structure(fresh("state"))
    tiny.assert_trees_equal(train(restored, 3, "state"), train(fresh("state"), 6, "state"))


@pytest.mark.parametrize("number", [1, 2])
def test_ema_parameters_of_older_formats_are_read(tmp_path, monkeypatch, number):
    old = save_in_format(number, tmp_path, monkeypatch).ema
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        ema, step = checkpoints.restore_best(jax.eval_shape(lambda: fresh("state")).ema)
    assert step == 3
    for part, tree in ema.items():
        assert tree.keys() == old[part].keys() - {"carried"} | {"state"}
        tiny.assert_trees_equal(tree["state"], old[part]["carried"])
        tiny.assert_trees_equal(
            {name: leaf for name, leaf in tree.items() if name != "state"},
            {name: leaf for name, leaf in old[part].items() if name != "carried"},
        )


def test_training_does_not_resume_from_format_1(tmp_path, monkeypatch):
    save_in_format(1, tmp_path, monkeypatch)
    with (
        pytest.raises(CheckpointError, match=r"/3 has format 1, this version reads 2, 3, 4: use the version"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.restore(jax.eval_shape(lambda: fresh("state")))
