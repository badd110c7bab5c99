"""One training step: a pure function of state, batch and seed key."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from lsgm_jax.arrays import Key, Scalar
from lsgm_jax.models.network import Aux, Params
from lsgm_jax.training.state import TrainState

Metrics = dict[str, Scalar]
Count = Int[Array, ""]


class Context(NamedTuple):
    """What a loss may use beside parameters and batch. None of it takes a gradient."""

    key: Key  # of this step
    step: Count
    average: Params  # of the parameters
    memory: Any  # `Aux.memory` of the step before


class Average(NamedTuple):
    """The moving average of the parameters.

    Attributes:
        decay: in the long run.
        warmup: whether it starts at min(decay, (1 + step) / (10 + step)): early averages forget the initial weights.
        skip: top-level parts of the parameters that are not averaged, but kept as they are.
    """

    decay: float
    warmup: bool = True
    skip: tuple[str, ...] = ()


Loss = Callable[[Any, Any, Context], tuple[Scalar, Aux]]  # of parameters, batch and context
Step = Callable[[TrainState, Any, Key], tuple[TrainState, Metrics]]


def make_step(loss: Loss, optimiser: optax.GradientTransformation, average: Average) -> Step:
    """Builds `(state, batch, key) -> (state, metrics)`.

    `key` is the same in every step: each step folds its number in, so that a resumed run draws what an
    uninterrupted one would have drawn.
    """

    def step(state: TrainState, batch: Any, key: Key) -> tuple[TrainState, Metrics]:
        k_step = jax.random.fold_in(key, state.step)
        context = Context(k_step, state.step, state.ema, state.memory)
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, aux), grads = gradient(state.params, batch, context)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = renew(optax.apply_updates(state.params, updates), aux.carried)
        ema = _follow(average, state.ema, params, state.step)
        metrics = aux.metrics | {"loss": value, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, renew(ema, aux.carried), opt_state, aux.memory), metrics

    return step


def renew(params: Params, carried: Params) -> Params:
    """Parameters with the parts that the loss carried on in their places; they are the average's as well."""
    if not isinstance(carried, dict):
        return carried
    return params | {name: renew(params[name], part) for name, part in carried.items()}


def _follow(average: Average, ema: Params, params: Params, step: Count) -> Params:
    decay = jnp.asarray(average.decay)
    if average.warmup:
        decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    ema = optax.incremental_update(params, ema, 1.0 - decay)
    return ema | {name: params[name] for name in average.skip} if average.skip else ema
