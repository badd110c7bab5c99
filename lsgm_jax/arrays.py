"""Array types and the few shape helpers that every other module shares.

Nothing here knows how many axes a latent has: the first axis counts samples, whatever follows belongs
to one sample. Images, vectors and sequences therefore go through the same objectives and solvers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Key = PRNGKeyArray
Images = Float[Array, "batch height width channels"]
Latents = Float[Array, "batch *latent"]
Times = Float[Array, "batch"]
PerSample = Float[Array, "batch"]
Scalar = Float[Array, ""]


class Phase(NamedTuple):
    """Position and velocity: the state of a process with two coordinates per latent dimension."""

    x: Latents
    v: Latents


State = Latents | Phase
# (z_t, t) -> eps_hat, the noise of the last coordinate. If it is a pytree (`jax.tree_util.Partial`), its leaves have a
# row per sample, which goes with the sample's row of z_t wherever a solver takes samples one by one.
EpsNet = Callable[[State, Times], Latents]


def coordinates(state: State) -> tuple[Latents, ...]:
    """One for a plain latent, (x, v) for a phase. Data is the first at time 0; noise enters the last."""
    return tuple(jax.tree.leaves(state))


def as_state(coordinates: Sequence[Latents]) -> State:
    """Inverse of `coordinates`."""
    return coordinates[0] if len(coordinates) == 1 else Phase(*coordinates)


def expand(values: PerSample, like: Latents) -> Array:
    """Appends axes of length one to `values` [batch] until it broadcasts against `like` [batch, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def sum_per_sample(values: Latents) -> PerSample:
    """Sums over all axes but the first."""
    return jnp.sum(values.reshape(values.shape[0], -1), axis=-1)


def in_steps(t: Float[Array, "*times"], steps: int) -> Float[Array, "*times"]:
    """Time in steps of 1 / `steps`, a whole number where it differs from one by no more than t's rounding."""
    position = steps * t
    node = jnp.round(position)
    near = jnp.abs(position - node) < 4.0 * steps * jnp.finfo(t.dtype).eps
    return position + jnp.where(near, jax.lax.stop_gradient(node - position), 0.0)


def scale_gradient(state: State, factor: PerSample) -> State:
    """Returns `state` unchanged; the gradient that flows back through it is multiplied by `factor` per sample.

    The difference below is exactly zero, so the value is exactly `state` for every finite factor.
    """

    def scale(x: Latents) -> Latents:
        frozen = jax.lax.stop_gradient(x)
        return frozen + expand(jax.lax.stop_gradient(factor), x) * (x - frozen)

    return jax.tree.map(scale, state)


def device_axes() -> tuple[str, ...]:
    """The axes of devices that each run this code on a part of the batch, as under `pmap`; none under `jit`."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def mean_over_devices(tree: PyTree) -> PyTree:
    """The mean over devices of what each has of its part of the batch; `tree` itself where they see the whole."""
    axes = device_axes()
    return jax.lax.pmean(tree, axes) if axes else tree


def parts_of_batch() -> int:
    """Into how many parts the batch is divided where this code runs: devices under `pmap`, otherwise one."""
    return jax.lax.axis_size(device_axes()) if device_axes() else 1
