"""The training state, a pytree of arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lsgm_jax.arrays import Params


class Skips(NamedTuple):
    """Counts of skipped steps, those with a non-finite loss or gradient; int32 scalars."""

    in_a_row: Any  # consecutive ones, up to the last step
    total: Any


class TrainState(struct.PyTreeNode):
    """Step counter, parameters, EMA parameters, optimiser state, and the memory of the loss."""

    step: Any  # int32 scalar; like every leaf a `ShapeDtypeStruct` under `jax.eval_shape`
    params: Params
    ema: Params
    opt_state: optax.OptState
    memory: Any = ()  # `Aux.memory` of the last step
    skips: Skips = Skips(0, 0)


def create_state(params: Params, optimiser: optax.GradientTransformation, memory: Any = ()) -> TrainState:
    """Returns the state before the first step; the EMA starts at the parameters.

    Parameters and EMA are copies, because a compiled step donates the buffers of its state.

    Args:
        params: initial parameters.
        optimiser: provides the optimiser state.
        memory: `Context.memory` of the first step.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=jax.tree.map(jnp.copy, params),
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimiser.init(params),
        memory=memory,
        skips=Skips(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)),
    )
