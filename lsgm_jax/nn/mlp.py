"""A multilayer perceptron that predicts the noise of vectors; CLD-SGM's network for data in the plane."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.arrays import Times
from lsgm_jax.nn.layers import Context, see_context

Vectors = Float[Array, "batch features"]
VectorPrediction = Float[Array, "batch out_features"]
TimeFeatures = Float[Array, "batch time_features"]


class MLP(nn.Module):
    """(z_t, t, context) -> eps_hat; the coordinates of z_t lie side by side, and t is one more input behind them.

    So are the means over a context's tokens, if there is one: they shift what the first layer makes of the rest.

    Attributes:
        out_features: dimensions of the noise prediction.
        hidden: widths of the hidden layers.
        time_octaves: of sines and cosines of log t that stand beside t, where the noise level changes by orders of
            magnitude; 0 for t alone, as published.
    """

    out_features: int
    hidden: tuple[int, ...] = (128, 128, 128, 128)
    time_octaves: int = 0

    @nn.compact
    def __call__(
        self, z_t: Vectors, t: Times, context: Context | None = None, *, deterministic: bool
    ) -> VectorPrediction:
        del deterministic  # nothing here is random; score networks share one signature
        # Beside the time, z_t is float32 too: close times meet in anything less.
        h = jnp.concatenate([z_t, t[:, None], log_time_features(t, self.time_octaves)], axis=-1)
        first, *others = (*self.hidden, self.out_features)
        h = see_context(nn.Dense(first, dtype=h.dtype)(h), context)
        for width in others:
            h = nn.Dense(width, dtype=z_t.dtype)(nn.swish(h).astype(z_t.dtype))
        return h


def log_time_features(t: Times, octaves: int) -> TimeFeatures:
    """Sines and cosines of log t, [batch, 2 octaves]; the slowest make a quarter of a turn from t = 3e-6 to 1.

    Times below 1e-6 look alike, so that t = 0 is one of them.
    """
    angle = jnp.log(t + 1e-6)[:, None] * 2.0 ** jnp.arange(octaves) / 8.0
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
