"""A multilayer perceptron that predicts the noise of vectors: the network of CLD-SGM for two-dimensional data."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.arrays import Times
from lsgm_jax.nn.layers import Context, see_context

Vectors = Float[Array, "batch features"]
VectorPrediction = Float[Array, "batch out_channels"]
TimeFeatures = Float[Array, "batch time_features"]


class MLP(nn.Module):
    """MLP score network (z_t, t, context) -> eps_hat, [batch, features] -> [batch, out_channels].

    The input is z_t, its coordinates concatenated, followed by t and the features of log t. The mean token of the
    context [batch, context_tokens, context_width], if given, shifts the output of the first layer.

    Attributes:
        out_channels: dimensions of the noise prediction.
        hidden: widths of the hidden layers.
        time_octaves: octaves of sines and cosines of log t in addition to t, for processes whose noise level changes
            by orders of magnitude; 0 for t alone, as published.
    """

    out_channels: int
    hidden: tuple[int, ...] = (128, 128, 128, 128)
    time_octaves: int = 0

    @nn.nowrap
    def refuse(self, shape: tuple[int, ...]) -> str | None:
        """Returns why the network cannot take latents of this shape (dimensions,), or None if it can."""
        return None if len(shape) == 1 else f"this network is for vectors, not for latents of shape {shape}"

    @nn.compact
    def __call__(
        self, z_t: Vectors, t: Times, context: Context | None = None, *, deterministic: bool
    ) -> VectorPrediction:
        del deterministic  # no dropout here; all score networks share one signature
        # The first layer is float32, as bfloat16 would round close times to one value.
        h = jnp.concatenate([z_t, t[:, None], log_time_features(t, self.time_octaves)], axis=-1)
        first, *others = (*self.hidden, self.out_channels)
        h = see_context(nn.Dense(first, dtype=h.dtype)(h), context)
        for width in others:
            h = nn.Dense(width, dtype=z_t.dtype)(nn.swish(h).astype(z_t.dtype))
        return h


def log_time_features(t: Times, octaves: int) -> TimeFeatures:
    """Computes sines, then cosines, of log(t + 1e-6) at the frequencies 2^i / 8, [batch, 2 octaves].

    The slowest make a quarter of a turn from t = 3e-6 to 1. The offset makes the features finite at t = 0; times below
    1e-6 have almost the same features.
    """
    angle = jnp.log(t + 1e-6)[:, None] * 2.0 ** jnp.arange(octaves) / 8.0
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
