"""What a checkpoint holds is the state at the moment of saving, whatever happens to the memory afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lsgm_jax.nn.network import Aux
from lsgm_jax.training import sharding
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.devices import place
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import EMA, make_step
from tests import tiny


def drift(params, batch, context):
    """A loss whose every step changes every parameter."""
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params)), Aux({}, {})


def test_saving_in_the_background_does_not_see_later_steps(tmp_path):
    """The next steps reuse the state's memory while the checkpoint is still being written."""
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
