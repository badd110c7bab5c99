"""Array types and the three shape helpers that every other module shares.

Nothing here knows how many axes a latent has: the first axis counts samples, whatever follows belongs
to one sample. Images, vectors and sequences therefore go through the same objectives and solvers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Key = PRNGKeyArray
Images = Float[Array, "batch height width channels"]
Latents = Float[Array, "batch *latent"]
Times = Float[Array, "batch"]
PerSample = Float[Array, "batch"]
Scalar = Float[Array, ""]
EpsNet = Callable[[Latents, Times], Latents]  # (z_t, t) -> eps_hat


def expand(values: PerSample, like: Latents) -> Array:
    """Appends axes of length one to `values` [batch] until it broadcasts against `like` [batch, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def sum_per_sample(values: Latents) -> PerSample:
    """Sums over all axes but the first."""
    return jnp.sum(values.reshape(values.shape[0], -1), axis=-1)


def scale_gradient(x: Latents, factor: PerSample) -> Latents:
    """Returns `x` unchanged; the gradient that flows back through it is multiplied by `factor` per sample.

    The difference below is exactly zero, so the value is exactly `x` for every finite factor.
    """
    frozen = jax.lax.stop_gradient(x)
    return frozen + expand(jax.lax.stop_gradient(factor), x) * (x - frozen)
