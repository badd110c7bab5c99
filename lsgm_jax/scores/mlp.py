"""A multilayer perceptron that predicts the noise of vectors; CLD-SGM's network for data in the plane."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.arrays import Times

Vectors = Float[Array, "batch features"]
VectorPrediction = Float[Array, "batch out_features"]


class MLP(nn.Module):
    """(z_t, t) -> eps_hat; the coordinates of z_t lie side by side, and t is one more input behind them.

    Attributes:
        out_features: dimensions of the noise prediction.
        hidden: widths of the hidden layers.
    """

    out_features: int
    hidden: tuple[int, ...] = (128, 128, 128, 128)

    @nn.compact
    def __call__(self, z_t: Vectors, t: Times, *, deterministic: bool) -> VectorPrediction:
        del deterministic  # nothing here is random; score networks share one signature
        h = jnp.concatenate([z_t, t[:, None]], axis=-1)
        for width in self.hidden:
            h = nn.swish(nn.Dense(width)(h))
        return nn.Dense(self.out_features)(h)
