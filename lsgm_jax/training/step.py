"""One training step: a pure function of state, batch and seed key. `sharding.py` says where it runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from lsgm_jax.arrays import Key, Scalar, device_axes, mean_over_devices
from lsgm_jax.nn.network import Aux, Params
from lsgm_jax.training.state import Skips, TrainState

Metrics = dict[str, Array]
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


def make_step(
    loss: Loss, optimiser: optax.GradientTransformation, average: Average, *, parts: int = 1
) -> Step:
    """Builds `(state, batch, key) -> (state, metrics)`.

    `key` is the same in every step: each step folds its number in, so that a resumed run draws what an
    uninterrupted one would have drawn. A step whose loss or gradient is no number changes nothing but the counters:
    see `Skips`.

    Args:
        parts: of a batch, whose gradients are taken one after the other, in the memory of one, and averaged.
    """
    gradient = jax.value_and_grad(loss, has_aux=True) if parts == 1 else _in_parts(loss, parts)

    def step(state: TrainState, batch: Any, key: Key) -> tuple[TrainState, Metrics]:
        context = Context(_own_key(key, state.step), state.step, state.ema, state.memory)
        (value, aux), grads = gradient(state.params, batch, context)
        value, grads, metrics = mean_over_devices((value, grads, aux.metrics))
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = renew(optax.apply_updates(state.params, updates), aux.carried)
        ema = renew(_follow(average, state.ema, params, state.step), aux.carried)
        moved = state.replace(params=params, ema=ema, opt_state=opt_state, memory=aux.memory)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, state)
        state = state.replace(step=state.step + 1, skips=_count(state.skips, finite))
        metrics |= {"loss": value, "gradient_norm": norm, "skipped": state.skips.total}
        return state, metrics | {"skipped_in_a_row": state.skips.in_a_row}

    return step


def several(step: Step, count: int) -> Step:
    """`count` steps in one call, on as many batches along a new first axis; the metrics are those of the last.

    For accelerators that would wait for Python: on CPU, XLA's gradients of convolutions inside a loop are 8 to 70
    times slower than outside.
    """
    if count == 1:
        return step

    def steps(state: TrainState, batches: Any, key: Key) -> tuple[TrainState, Metrics]:
        state, metrics = jax.lax.scan(lambda state, batch: step(state, batch, key), state, batches)
        return state, jax.tree.map(lambda values: values[-1], metrics)

    return steps


def renew(params: Params, carried: Params) -> Params:
    """Parameters with the parts that the loss carried on in their places; they are the average's as well."""
    if not isinstance(carried, dict):
        return carried
    return params | {name: renew(params[name], part) for name, part in carried.items()}


def _in_parts(loss: Loss, parts: int) -> Callable[[Params, Any, Context], tuple[tuple[Scalar, Aux], Params]]:
    """The loss and its gradient as means over parts of the batch; each meets what the one before has carried on."""
    gradient = jax.value_and_grad(loss, has_aux=True)

    def mean(params: Params, batch: Any, context: Context) -> tuple[tuple[Scalar, Aux], Params]:
        split = jax.tree.map(lambda leaf: _deal(leaf, parts), batch)
        carried = jax.eval_shape(lambda rows: loss(params, rows, context)[1].carried, _first(split))

        def add(total: tuple[Params, Any, Params], part: tuple[Count, Any]) -> tuple[Any, Metrics]:
            params, memory, sums = total
            index, rows = part
            own = context._replace(key=jax.random.fold_in(context.key, index), memory=memory)
            (value, aux), grads = gradient(params, rows, own)
            sums = jax.tree.map(lambda total, new: total + new / parts, sums, grads)
            return (renew(params, aux.carried), aux.memory, sums), aux.metrics | {"loss": value}

        start = (params, context.memory, jax.tree.map(jnp.zeros_like, params))
        # See `several` for why not in a loop on CPU.
        unroll = parts if jax.default_backend() == "cpu" else 1
        (params, memory, grads), metrics = jax.lax.scan(add, start, (jnp.arange(parts), split), unroll=unroll)
        metrics = jax.tree.map(jnp.mean, metrics)
        aux = Aux(metrics, _the_part(params, carried), memory=memory)
        return (metrics.pop("loss"), aux), grads

    return mean


def _deal(leaf: Array, parts: int) -> Array:
    """[batch, ...] -> [parts, batch / parts, ...], every part with rows of every device that holds the batch."""
    return jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0)


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _the_part(params: Params, like: Params) -> Params:
    """What of the parameters `like`, in the manner of `Aux.carried`, has entries for."""
    if not isinstance(like, dict):
        return params
    return {name: _the_part(params[name], part) for name, part in like.items()}


def _own_key(key: Key, step: Count) -> Key:
    """The key of a step; under `pmap` every device, which sees its part of the batch alone, has its own."""
    key = jax.random.fold_in(key, step)
    for axis in device_axes():
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    return key


def _follow(average: Average, ema: Params, params: Params, step: Count) -> Params:
    decay = jnp.asarray(average.decay)
    if average.warmup:
        decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    ema = optax.incremental_update(params, ema, 1.0 - decay)
    return ema | {name: params[name] for name in average.skip} if average.skip else ema


def _count(skips: Skips, finite: Bool[Array, ""]) -> Skips:
    skipped = jnp.asarray(~finite, jnp.int32)
    return Skips(skipped * (skips.in_a_row + 1), skips.total + skipped)
