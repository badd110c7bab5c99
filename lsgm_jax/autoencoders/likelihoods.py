"""Decoder distributions p(x | z_0) over images on a grid of grey levels.

Images lie in [-1, 1] on `levels` equally spaced values; log-probabilities are those of the discrete grey level,
so nats and bits per dimension count the information of the stored image. A decoder network emits `channels(c)` numbers
per pixel, its "features".
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Images, Key, PerSample, sum_per_sample

Features = Float[Array, "batch height width features"]


@runtime_checkable
class Likelihood(Protocol):
    """What a decoder's features mean."""

    def channels(self, image_channels: int) -> int:
        """Features per pixel that the decoder has to emit."""
        ...

    def log_prob(self, features: Features, x: Images) -> PerSample:
        """Log p(x | z_0), nats, summed over pixels and channels."""
        ...

    def mean(self, features: Features) -> Images:
        """Expected image in [-1, 1]."""
        ...

    def sample(self, features: Features, key: Key) -> Images:
        """Draws an image on the grid of grey levels."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bernoulli:
    """Binary images: x = -1 or 1, one logit per value."""

    levels: int = 2

    def __post_init__(self):
        if self.levels != 2:
            raise ValueError(
                f"Bernoulli describes 2 grey levels, got levels={self.levels}: set data.levels=2"
            )

    def channels(self, image_channels: int) -> int:
        """One logit per value."""
        return image_channels

    def log_prob(self, features: Features, x: Images) -> PerSample:
        """X = 1 has probability sigmoid(logit); x = -1 the rest."""
        return sum_per_sample(jax.nn.log_sigmoid(features * x))

    def mean(self, features: Features) -> Images:
        """2 p - 1."""
        return jnp.tanh(0.5 * features)

    def sample(self, features: Features, key: Key) -> Images:
        """-1 or 1."""
        return jnp.where(jax.random.bernoulli(key, jax.nn.sigmoid(features)), 1.0, -1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscretisedLogistic:
    """A logistic density integrated over each grey level's bin; the outer bins take the tails.

    Means come first, log scales second; log scales are clamped below at -7 (PixelCNN++ section 2.1; LSGM appendix).
    """

    levels: int = 256

    def channels(self, image_channels: int) -> int:
        """Mean and log scale per value."""
        return 2 * image_channels

    def log_prob(self, features: Features, x: Images) -> PerSample:
        """Log of the difference of two sigmoids, by log1mexp rather than by subtracting probabilities."""
        mean, log_scale = self._split(features)
        half_bin = 1.0 / (self.levels - 1)
        inverse_scale = jnp.exp(-log_scale)
        upper = (x - mean + half_bin) * inverse_scale
        lower = (x - mean - half_bin) * inverse_scale
        # log(s(u) - s(l)) = log s(u) + log s(-l) + log(1 - exp(l - u)): every term is exact in the tails.
        inside = jax.nn.log_sigmoid(upper) + jax.nn.log_sigmoid(-lower)
        inside += jax.nn.log1mexp(2.0 * half_bin * inverse_scale)
        log_mass = jnp.where(
            x < -1.0 + half_bin,
            jax.nn.log_sigmoid(upper),
            jnp.where(x > 1.0 - half_bin, jax.nn.log_sigmoid(-lower), inside),
        )
        return sum_per_sample(log_mass)

    def mean(self, features: Features) -> Images:
        """Centre of the logistic, clipped to the image range."""
        return jnp.clip(self._split(features)[0], -1.0, 1.0)

    def sample(self, features: Features, key: Key) -> Images:
        """Draws from the logistic and rounds to the grid."""
        mean, log_scale = self._split(features)
        draw = mean + jnp.exp(log_scale) * jax.random.logistic(key, mean.shape, mean.dtype)
        steps = jnp.round((jnp.clip(draw, -1.0, 1.0) + 1.0) * 0.5 * (self.levels - 1))
        return 2.0 * steps / (self.levels - 1) - 1.0

    def _split(self, features: Features) -> tuple[Images, Images]:
        mean, log_scale = jnp.split(features, 2, axis=-1)
        return mean, jnp.maximum(log_scale, -7.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Categorical:
    """One logit for every grey level: the most flexible choice where the levels are few."""

    levels: int = 17

    def channels(self, image_channels: int) -> int:
        """`levels` logits per value."""
        return self.levels * image_channels

    def log_prob(self, features: Features, x: Images) -> PerSample:
        """Log softmax at the grey level of each pixel."""
        log_p = jax.nn.log_softmax(self._logits(features))
        index = jnp.round((x + 1.0) * 0.5 * (self.levels - 1)).astype(jnp.int32)
        return sum_per_sample(jnp.take_along_axis(log_p, index[..., None], axis=-1))

    def mean(self, features: Features) -> Images:
        """Average grey level."""
        return jax.nn.softmax(self._logits(features)) @ jnp.linspace(-1.0, 1.0, self.levels)

    def sample(self, features: Features, key: Key) -> Images:
        """Draws one level per value."""
        index = jax.random.categorical(key, self._logits(features))
        return jnp.linspace(-1.0, 1.0, self.levels)[index]

    def _logits(self, features: Features) -> Array:
        return features.reshape(*features.shape[:-1], -1, self.levels)
