"""Array types and shape helpers that all modules share.

The first axis of an array is the batch; all other axes belong to one sample. No function here depends on their number,
so images, vectors and sequences use the same objectives and solvers.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

Key = PRNGKeyArray
Images = Float[Array, "batch height width channels"]
Latents = Float[Array, "batch *latent"]
Times = Float[Array, "batch"]
PerSample = Float[Array, "batch"]
Scalar = Float[Array, ""]
# Parameters: nested dictionaries of arrays, by part of the model and by module: {"vae": ..., "score_net": ...}.
Params = PyTree
# Conditions of a batch: arrays [batch, ...], such as labels or token ids. None for no condition.
Condition = PyTree


class Phase(NamedTuple):
    """Position and velocity: the state of a process with two coordinates per latent dimension."""

    x: Latents
    v: Latents


State = Latents | Phase
# (z_t, t) -> eps_hat, the predicted noise of the last coordinate. If it is a pytree (`jax.tree_util.Partial`), its
# arrays have the batch as their first axis: a solver that is mapped over samples maps over them as well.
EpsNet = Callable[[State, Times], Latents]


def coordinates(state: State) -> tuple[Latents, ...]:
    """Returns (z,) for a plain latent and (x, v) for a phase. The first is data at time 0; noise enters the last."""
    return tuple(jax.tree.leaves(state))


def as_state(coordinates: Sequence[Latents]) -> State:
    """Returns the state with these coordinates: the inverse of `coordinates`."""
    return coordinates[0] if len(coordinates) == 1 else Phase(*coordinates)


def expand(values: PerSample, like: Latents) -> Array:
    """Appends axes of length one to `values` [batch] until it broadcasts against `like` [batch, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def sum_per_sample(values: Latents) -> PerSample:
    """Sums over all axes but the first."""
    return jnp.sum(values.reshape(values.shape[0], -1), axis=-1)


def at_least_float32(values: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Casts values of lower precision to float32; float64 stays float64."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def finite_per_sample(values: Latents) -> Bool[Array, "batch"]:
    """Returns for each sample whether all its values are finite."""
    return jnp.all(jnp.isfinite(values.reshape(values.shape[0], -1)), axis=-1)


def draw_array(sampler: Callable[..., Array], key: Key, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """Returns `sampler(key, shape, dtype)`, such as `jax.random.normal`, drawn as a matrix.

    The numbers are the same. But XLA's CPU compiler takes four times as long over the random bits of four axes, about
    one second per draw (docs/speed.md), and networks have many.
    """
    if len(shape) < 3:
        return sampler(key, shape, dtype)
    return sampler(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)


def in_steps(t: Float[Array, "*times"], steps: int) -> Float[Array, "*times"]:
    """Returns `steps * t`, rounded to an integer where it differs from one by rounding error alone."""
    position = steps * t
    node = jnp.round(position)
    near = jnp.abs(position - node) < 4.0 * steps * jnp.finfo(t.dtype).eps
    return position + jnp.where(near, jax.lax.stop_gradient(node - position), 0.0)


def scale_gradient(state: State, factor: PerSample) -> State:
    """Returns `state` unchanged and multiplies its gradient by `factor`, per sample, in the backward pass.

    The difference below is exactly zero, so the value is exactly `state` for every finite factor.
    """

    def scale(x: Latents) -> Latents:
        frozen = jax.lax.stop_gradient(x)
        return frozen + expand(jax.lax.stop_gradient(factor), x) * (x - frozen)

    return jax.tree.map(scale, state)


def device_axes() -> tuple[str, ...]:
    """Returns the names of the mesh axes over which this code is mapped, as under `pmap`; none under `jit`."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def mean_over_devices(tree: PyTree) -> PyTree:
    """Returns the mean of `tree` over devices under `pmap`; `tree` itself under `jit`, which sees the global batch."""
    axes = device_axes()
    return jax.lax.pmean(tree, axes) if axes else tree


def parts_of_batch() -> int:
    """Returns the number of shards of the batch: that of the devices under `pmap`, otherwise one."""
    return jax.lax.axis_size(device_axes()) if device_axes() else 1
