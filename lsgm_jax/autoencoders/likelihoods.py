"""Decoder distributions p(x | z_0) over images on a grid of grey levels.

Images lie on `levels` equally spaced values in [-1, 1]. Log probabilities are those of the discrete grey levels, so
nats and bits per dimension measure the information of the stored image. A decoder network outputs `channels(c)`
features per pixel, the parameters of the distribution. The mixture over red, green and blue is in `mixture.py`.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsgm_jax.arrays import Images, Key, PerSample, draw_array, sum_per_sample
from lsgm_jax.autoencoders.gaussian import Gaussian

Features = Float[Array, "batch height width features"]
MIN_LOG_SCALE = -7.0


@runtime_checkable
class Likelihood(Protocol):
    """A distribution over images, parametrised by the features of a decoder."""

    def channels(self, image_channels: int) -> int:
        """Returns the number of features per pixel that the decoder has to output, for images with so many channels."""
        ...

    def log_prob(self, features: Features, x: Images) -> PerSample:
        """Computes log p(x | z_0), nats per image, summed over pixels and channels."""
        ...

    def mean(self, features: Features) -> Images:
        """Returns the expected image, in [-1, 1]."""
        ...

    def sample(self, features: Features, key: Key) -> Images:
        """Draws an image on the grid of grey levels."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bernoulli:
    """Binary images with values -1 or 1; the features are one logit per value."""

    levels: int = 2

    def __post_init__(self):
        if self.levels != 2:
            raise ValueError(
                f"Bernoulli describes 2 grey levels, got levels={self.levels}: set data.levels=2"
            )

    def channels(self, image_channels: int) -> int:
        """Returns `image_channels`: one logit per value."""
        return image_channels

    def log_prob(self, features: Features, x: Images) -> PerSample:
        """Computes log p, nats per image, with p(x = 1) = sigmoid(logit) for each value."""
        return sum_per_sample(jax.nn.log_sigmoid(features * x))

    def mean(self, features: Features) -> Images:
        """Returns the expected value 2 p - 1."""
        return jnp.tanh(0.5 * features)

    def sample(self, features: Features, key: Key) -> Images:
        """Draws -1 or 1 for each value."""
        uniform = draw_array(jax.random.uniform, key, features.shape, features.dtype)
        return jnp.where(uniform < jax.nn.sigmoid(features), 1.0, -1.0)


def on_grid(values: Float[Array, "..."], levels: int) -> Float[Array, "..."]:
    """Rounds values to the nearest of `levels` grey levels in [-1, 1]."""
    steps = jnp.round((jnp.clip(values, -1.0, 1.0) + 1.0) * 0.5 * (levels - 1))
    return 2.0 * steps / (levels - 1) - 1.0


def check_density_below(mass: float) -> None:
    """Raises ValueError unless `mass` is in [0, 1)."""
    if not 0.0 <= mass < 1.0:
        raise ValueError(
            f"density_below={mass}: give a small probability such as 1e-5, or 0 for exact masses"
        )


def logistic_log_mass(
    x: Float[Array, "..."],
    mean: Float[Array, "..."],
    log_scale: Float[Array, "..."],
    levels: int,
    density_below: float = 0.0,
) -> Float[Array, "..."]:
    """Computes the log probability of the bin of grey level `x` under a logistic density, nats per value.

    The outer bins include the tails. The difference of the two sigmoids is computed by log1mexp, so that it is accurate
    in the tails. Arguments broadcast.

    Args:
        x: grey levels in [-1, 1].
        mean: mean of the logistic.
        log_scale: logarithm of its scale.
        levels: number of grey levels.
        density_below: inner bins of at most this mass get the density at their centre times their width.
    """
    half_bin = 1.0 / (levels - 1)
    inverse_scale = jnp.exp(-log_scale)
    upper = (x - mean + half_bin) * inverse_scale
    lower = (x - mean - half_bin) * inverse_scale
    # log(s(u) - s(l)) = log s(u) + log s(-l) + log(1 - exp(l - u)): every term is exact in the tails.
    inside = jax.nn.log_sigmoid(upper) + jax.nn.log_sigmoid(-lower)
    inside += jax.nn.log1mexp(2.0 * half_bin * inverse_scale)
    if density_below > 0.0:
        centre = (x - mean) * inverse_scale
        density = jax.nn.log_sigmoid(centre) + jax.nn.log_sigmoid(-centre) - log_scale
        inside = jnp.where(inside > jnp.log(density_below), inside, density + jnp.log(2.0 * half_bin))
    left, right = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
    return jnp.where(x < -1.0 + half_bin, left, jnp.where(x > 1.0 - half_bin, right, inside))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscretisedLogistic:
    """A logistic density integrated over the bin of each grey level; the outer bins include the tails.

    The features are means, then log scales, which are clamped below at -7 (PixelCNN++ section 2.1; LSGM appendix).

    Attributes:
        levels: number of grey levels.
        density_below: inner bins of at most this mass get their width times the density at their centre, which is less
            than the mass. Published results use 1e-5; with 0 all bins have their exact probability.
    """

    levels: int = 256
    density_below: float = 0.0

    def __post_init__(self):
        check_density_below(self.density_below)

    def channels(self, image_channels: int) -> int:
        """Returns 2 `image_channels`: mean and log scale per value."""
        return 2 * image_channels

    def log_prob(self, features: Features, x: Images) -> PerSample:
        """Computes the log probability of the bins, nats per image."""
        return sum_per_sample(logistic_log_mass(x, *self._split(features), self.levels, self.density_below))

    def mean(self, features: Features) -> Images:
        """Returns the mean of the logistic, clipped to [-1, 1]."""
        return jnp.clip(self._split(features)[0], -1.0, 1.0)

    def sample(self, features: Features, key: Key) -> Images:
        """Draws from the logistic and rounds to the grid."""
        mean, log_scale = self._split(features)
        noise = draw_array(jax.random.logistic, key, mean.shape, mean.dtype)
        return on_grid(mean + jnp.exp(log_scale) * noise, self.levels)

    def _split(self, features: Features) -> tuple[Images, Images]:
        mean, log_scale = jnp.split(features, 2, axis=-1)
        return mean, jnp.maximum(log_scale, MIN_LOG_SCALE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianPixels:
    """A Gaussian density per value.

    The features are means, then log standard deviations, both softly clamped to (-5, 5). As in LSGM, `log_prob` is a
    log density over [-1, 1], not the log probability of a grey level: it may be positive, and its bits per dimension
    are comparable only with those of other densities.

    Attributes:
        levels: number of grey levels of the samples.
    """

    levels: int = 256

    def channels(self, image_channels: int) -> int:
        """Returns 2 `image_channels`: mean and log standard deviation per value."""
        return 2 * image_channels

    def log_prob(self, features: Features, x: Images) -> PerSample:
        """Computes the log density, nats per image."""
        return sum_per_sample(Gaussian.from_features(features).log_density(x))

    def mean(self, features: Features) -> Images:
        """Returns the mean of the Gaussian, clipped to [-1, 1]."""
        return jnp.clip(Gaussian.from_features(features).mean, -1.0, 1.0)

    def sample(self, features: Features, key: Key) -> Images:
        """Draws from the Gaussian and rounds to the grid."""
        return on_grid(Gaussian.from_features(features).sample(key), self.levels)


@dataclasses.dataclass(frozen=True)
class Cropped:
    """Restricts the log probability to the inside of a padded image; means and samples include the border.

    Binary digits of 28 x 28 pixels, padded to 32 x 32, have a border of 2.

    Attributes:
        inner: likelihood of the pixels.
        border: number of padded pixels on each of the four edges.
    """

    inner: Likelihood
    border: int = 2

    def __post_init__(self):
        if self.border < 0:
            raise ValueError(
                f"border={self.border}: give the number of padded pixels on each side, 0 or more"
            )

    def channels(self, image_channels: int) -> int:
        """Returns the number of features of `inner`."""
        return self.inner.channels(image_channels)

    def log_prob(self, features: Features, x: Images) -> PerSample:
        """Computes log p of the pixels inside the border, nats per image."""
        return self.inner.log_prob(self._inside(features), self._inside(x))

    def mean(self, features: Features) -> Images:
        """Returns the mean of the padded image."""
        return self.inner.mean(features)

    def sample(self, features: Features, key: Key) -> Images:
        """Draws the padded image."""
        return self.inner.sample(features, key)

    def _inside(self, values: Features) -> Float[Array, "batch inner_height inner_width features"]:
        _, height, width, _ = values.shape
        if 2 * self.border >= min(height, width):
            raise ValueError(
                f"border={self.border} leaves nothing of {height} x {width} pixels: make it smaller"
            )
        return values[:, self.border : height - self.border, self.border : width - self.border]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Categorical:
    """A softmax over all values, for images with few grey levels or with labels.

    Attributes:
        levels: number of values, on an equally spaced grid in [-1, 1].
        ordered: whether the values are quantities, such as grey levels. If not, they are labels: the encoder gets them
            one-hot, and `mean` returns the most probable label.
    """

    levels: int = 17
    ordered: bool = True

    def channels(self, image_channels: int) -> int:
        """Returns `levels` `image_channels`: one logit for each level of each value."""
        return self.levels * image_channels

    def index(self, x: Images) -> Int[Array, "batch height width channels"]:
        """Returns the index of each value on the grid, from 0."""
        return jnp.round((x + 1.0) * 0.5 * (self.levels - 1)).astype(jnp.int32)

    def log_prob(self, features: Features, x: Images) -> PerSample:
        """Computes the log softmax at the values of `x`, nats per image."""
        log_p = jax.nn.log_softmax(self._logits(features))
        return sum_per_sample(jnp.take_along_axis(log_p, self.index(x)[..., None], axis=-1))

    def mean(self, features: Features) -> Images:
        """Returns the expected grey level, or the most probable label if not `ordered`."""
        if not self.ordered:
            return self._values()[jnp.argmax(self._logits(features), axis=-1)]
        return jax.nn.softmax(self._logits(features)) @ self._values()

    def sample(self, features: Features, key: Key) -> Images:
        """Draws a level for each value."""
        logits = self._logits(features)
        gumbel = draw_array(jax.random.gumbel, key, logits.shape, logits.dtype)
        return self._values()[jnp.argmax(logits + gumbel, axis=-1)]

    def _values(self) -> Float[Array, "levels"]:
        return jnp.linspace(-1.0, 1.0, self.levels)

    def _logits(self, features: Features) -> Array:
        return features.reshape(*features.shape[:-1], -1, self.levels)


def scored_values(likelihood: Likelihood, image_shape: tuple[int, int, int]) -> int:
    """Returns the number of pixel values that `log_prob` covers: the dimensions in "bits per dimension"."""
    border = likelihood.border if isinstance(likelihood, Cropped) else 0
    height, width, channels = image_shape
    return (height - 2 * border) * (width - 2 * border) * channels


def label_count(likelihood: Likelihood) -> int:
    """Returns the number of labels that a pixel value can have, or 0 if the values are quantities."""
    return likelihood.levels if isinstance(likelihood, Categorical) and not likelihood.ordered else 0


def shown(likelihood: Likelihood, x: Images) -> Float[Array, "batch height width seen"]:
    """Returns the input of the encoder: labels as one-hot channels, other images unchanged."""
    if not isinstance(likelihood, Categorical) or likelihood.ordered:
        return x
    one_hot = jax.nn.one_hot(likelihood.index(x), likelihood.levels, dtype=x.dtype)
    return one_hot.reshape(*x.shape[:-1], -1)
