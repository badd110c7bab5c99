"""One training step: a pure function of state, batch and seed key. `sharding.py` says where it runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from lsgm_jax.arrays import Key, Params, Scalar, device_axes, mean_over_devices
from lsgm_jax.nn.network import Aux
from lsgm_jax.training.state import Skips, TrainState

Metrics = dict[str, Array]
Count = Int[Array, ""]


class Context(NamedTuple):
    """Inputs of a loss besides parameters and batch. None of them takes a gradient."""

    key: Key  # independent for each step
    step: Count
    ema_params: Params
    memory: Any  # `Aux.memory` of the step before


class EMA(NamedTuple):
    """EMA of the parameters, their exponentially weighted average over steps.

    Attributes:
        decay: after the warm-up.
        warmup: takes min(decay, (1 + step) / (10 + step)) as the decay, to forget the initial parameters sooner.
        skip: top-level parts of the parameters without an EMA; their current value takes its place.
    """

    decay: float
    warmup: bool = True
    skip: tuple[str, ...] = ()

    def update(self, ema_params: Params, params: Params, step: Count) -> Params:
        """Returns the EMA parameters after `step`."""
        decay = jnp.asarray(self.decay)
        if self.warmup:
            decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
        moved: Params = optax.incremental_update(params, ema_params, 1.0 - decay)
        return moved | {name: params[name] for name in self.skip} if self.skip else moved


Loss = Callable[[Any, Any, Context], tuple[Scalar, Aux]]  # of parameters, batch and context
Step = Callable[[TrainState, Any, Key], tuple[TrainState, Metrics]]


def make_step(
    loss: Loss, optimiser: optax.GradientTransformation, ema: EMA, *, grad_accum_steps: int = 1
) -> Step:
    """Builds the training step, `(state, batch, key) -> (state, metrics)`.

    `key` is the same in every step. Each step folds in its number, so that a resumed run draws the same noise as an
    uninterrupted one. A step with a non-finite loss or gradient changes only the counters, see `Skips`.

    Args:
        loss: function of parameters, batch and context.
        optimiser: of the parameters.
        ema: of the parameters.
        grad_accum_steps: micro-batches per step, whose gradients are accumulated sequentially and averaged.
    """
    gradient = (
        jax.value_and_grad(loss, has_aux=True)
        if grad_accum_steps == 1
        else _accumulated(loss, grad_accum_steps)
    )

    def step(state: TrainState, batch: Any, key: Key) -> tuple[TrainState, Metrics]:
        context = Context(_step_key(key, state.step), state.step, state.ema, state.memory)
        (value, aux), grads = gradient(state.params, batch, context)
        value, grads, metrics = mean_over_devices((value, grads, aux.metrics))
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)

        def move(state: TrainState) -> TrainState:
            updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
            params = renew(optax.apply_updates(state.params, updates), aux.state)
            ema_params = renew(ema.update(state.ema, params, state.step), aux.state)
            return state.replace(params=params, ema=ema_params, opt_state=opt_state, memory=aux.memory)

        # Not a choice between two states, for which both would be in memory at once.
        state = jax.lax.cond(finite, move, lambda state: state, state)
        state = state.replace(step=state.step + 1, skips=_count(state.skips, finite))
        metrics |= {"loss": value, "gradient_norm": norm, "skipped": state.skips.total}
        return state, metrics | {"skipped_in_a_row": state.skips.in_a_row}

    return step


def scan_steps(step: Step, count: int) -> Step:
    """Scans over `count` steps in one call; returns the metrics of the last step.

    This saves accelerators the wait for Python between steps.

    Args:
        step: the training step.
        count: number of steps; their batches are stacked along a new first axis.
    """
    if count == 1:
        return step

    def steps(state: TrainState, batches: Any, key: Key) -> tuple[TrainState, Metrics]:
        state, metrics = jax.lax.scan(lambda state, batch: step(state, batch, key), state, batches)
        return state, jax.tree.map(lambda values: values[-1], metrics)

    return steps


def renew(params: Params, state: Params) -> Params:
    """Replaces non-trainable state, given as in `Aux.state`, in the parameters or in their EMA."""
    if not isinstance(state, dict):
        return state
    return params | {name: renew(params[name], part) for name, part in state.items()}


def _accumulated(
    loss: Loss, micro_batches: int
) -> Callable[[Params, Any, Context], tuple[tuple[Scalar, Aux], Params]]:
    """Returns the loss and its gradient as means over micro-batches.

    Non-trainable state and memory pass from each micro-batch to the next.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)

    def mean(params: Params, batch: Any, context: Context) -> tuple[tuple[Scalar, Aux], Params]:
        split = jax.tree.map(lambda leaf: _deal(leaf, micro_batches), batch)
        state = jax.eval_shape(lambda rows: loss(params, rows, context)[1].state, _first(split))

        def add(total: tuple[Params, Any, Params], micro_batch: tuple[Count, Any]) -> tuple[Any, Metrics]:
            params, memory, sums = total
            index, rows = micro_batch
            inner = context._replace(key=jax.random.fold_in(context.key, index), memory=memory)
            (value, aux), grads = gradient(params, rows, inner)
            sums = jax.tree.map(lambda total, new: total + new / micro_batches, sums, grads)
            return (renew(params, aux.state), aux.memory, sums), aux.metrics | {"loss": value}

        start = (params, context.memory, jax.tree.map(jnp.zeros_like, params))
        (params, memory, grads), metrics = jax.lax.scan(add, start, (jnp.arange(micro_batches), split))
        metrics = jax.tree.map(jnp.mean, metrics)
        aux = Aux(metrics, _subtree(params, state), memory=memory)
        return (metrics.pop("loss"), aux), grads

    return mean


def _deal(leaf: Array, micro_batches: int) -> Array:
    """Reshapes [batch, ...] to [micro_batches, rows, ...]; each micro-batch has rows of every device."""
    return jnp.moveaxis(leaf.reshape(-1, micro_batches, *leaf.shape[1:]), 1, 0)


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _subtree(params: Params, like: Params) -> Params:
    """Returns the part of the parameters that `like`, a tree as in `Aux.state`, has entries for."""
    if not isinstance(like, dict):
        return params
    return {name: _subtree(params[name], part) for name, part in like.items()}


def _step_key(key: Key, step: Count) -> Key:
    """Returns the key of a step; under `pmap` it differs between devices, which see different samples."""
    key = jax.random.fold_in(key, step)
    for axis in device_axes():
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    return key


def _count(skips: Skips, finite: Bool[Array, ""]) -> Skips:
    skipped = jnp.asarray(~finite, jnp.int32)
    return Skips(skipped * (skips.in_a_row + 1), skips.total + skipped)
