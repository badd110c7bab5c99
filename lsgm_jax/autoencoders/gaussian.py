"""The posterior q(z_0 | x) of the encoder, a diagonal Gaussian."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Key, Latents, draw_array

LOG_2PI = math.log(2.0 * math.pi)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Diagonal Gaussian over a latent [batch, ...].

    Attributes:
        mean: mean of each entry.
        log_std: logarithm of the standard deviation of each entry.
    """

    mean: Latents
    log_std: Latents

    @classmethod
    def from_features(
        cls, features: Float[Array, "batch ... channels"], log_std_bound: float = 5.0
    ) -> "Gaussian":
        """Builds the Gaussian from mean and log standard deviation along the last axis, softly clamped as in NVAE.

        Args:
            features: means, then log standard deviations; the means are clamped to (-5, 5).
            log_std_bound: the log standard deviations are clamped to plus or minus this.
        """
        mean, log_std = jnp.split(features, 2, axis=-1)
        return cls(mean=_soft_clamp(mean), log_std=_soft_clamp(log_std, log_std_bound))

    @classmethod
    def from_log_variance(cls, features: Float[Array, "batch ... channels"]) -> "Gaussian":
        """Builds the Gaussian from mean and log variance along the last axis, as in latent diffusion.

        The log variance is clipped to [-30, 20].
        """
        mean, log_variance = jnp.split(features, 2, axis=-1)
        return cls(mean=mean, log_std=0.5 * jnp.clip(log_variance, -30.0, 20.0))

    def sample(self, key: Key) -> Latents:
        """Draws a reparameterised sample."""
        return self.mean + jnp.exp(self.log_std) * draw_array(
            jax.random.normal, key, self.mean.shape, self.mean.dtype
        )

    def log_density(self, z: Latents) -> Latents:
        """Returns the log density of each entry of `z`, nats; the sum is log q(z | x)."""
        return -0.5 * ((z - self.mean) * jnp.exp(-self.log_std)) ** 2 - self.log_std - 0.5 * LOG_2PI

    def entropy(self) -> Latents:
        """Returns the entropy of each entry, nats (A1)."""
        return self.log_std + 0.5 * (1.0 + LOG_2PI)

    def cross_entropy_to_standard(self) -> Latents:
        """Returns CE(q || N(0, I)) of each entry, nats (A2)."""
        return 0.5 * (self.mean**2 + jnp.exp(2.0 * self.log_std) + LOG_2PI)

    def divergence_from_standard(self) -> Latents:
        """Returns KL(q || N(0, I)) of each entry, nats."""
        return 0.5 * (self.mean**2 + jnp.expm1(2.0 * self.log_std)) - self.log_std


def _soft_clamp(values: Array, limit: float = 5.0) -> Array:
    return limit * jnp.tanh(values / limit)
