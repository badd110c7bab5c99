"""One training step: a pure function of state, batch and seed key."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from lsgm_jax.arrays import Key, Scalar
from lsgm_jax.models.network import Aux, Params
from lsgm_jax.training.state import TrainState

Metrics = dict[str, Scalar]
Loss = Callable[[Any, Any, Key, Any], tuple[Scalar, Aux]]  # of parameters, batch, key and step number
Step = Callable[[TrainState, Any, Key], tuple[TrainState, Metrics]]


def make_step(loss: Loss, optimiser: optax.GradientTransformation, ema_decay: float) -> Step:
    """Builds `(state, batch, key) -> (state, metrics)`.

    `key` is the same in every step: each step folds its number in, so that a resumed run draws what an
    uninterrupted one would have drawn.
    """

    def step(state: TrainState, batch: Any, key: Key) -> tuple[TrainState, Metrics]:
        k_step = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, aux), grads = gradient(state.params, batch, k_step, state.step)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = renew(optax.apply_updates(state.params, updates), aux.carried)
        decay = _warm_ema_decay(ema_decay, state.step)
        ema = renew(optax.incremental_update(params, state.ema, 1.0 - decay), aux.carried)
        metrics = aux.metrics | {"loss": value, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(step=state.step + 1, params=params, ema=ema, opt_state=opt_state), metrics

    return step


def renew(params: Params, carried: Params) -> Params:
    """Parameters with the parts that the loss carried on in their places; they are the average's as well."""
    if not isinstance(carried, dict):
        return carried
    return params | {name: renew(params[name], part) for name, part in carried.items()}


def _warm_ema_decay(decay: float, step: Int[Array, ""]) -> Scalar:
    """min(decay, (1 + step) / (10 + step)): early averages forget the initial weights quickly."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))
