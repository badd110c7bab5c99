"""What training carries from step to step: arrays only."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lsgm_jax.nn.network import Params


class Skips(NamedTuple):
    """Steps that changed nothing, because their loss or gradient was no number; int32, scalars."""

    in_a_row: Any  # up to the last step
    total: Any


class TrainState(struct.PyTreeNode):
    """Step counter, parameters, their moving average, the optimiser's state, and what the loss remembers."""

    step: Any  # int32, scalar; like every leaf a mere shape under `jax.eval_shape`
    params: Params
    ema: Params
    opt_state: optax.OptState
    memory: Any = ()  # `Aux.memory` of the last step
    skips: Skips = Skips(0, 0)


def create_state(params: Params, optimiser: optax.GradientTransformation, memory: Any = ()) -> TrainState:
    """State before the first step; the average starts at the parameters.

    Both are copies: a compiled step reuses the memory of the state it is given, never that of the caller.

    Args:
        memory: what the loss finds in the first step.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=jax.tree.map(jnp.copy, params),
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimiser.init(params),
        memory=memory,
        skips=Skips(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)),
    )
