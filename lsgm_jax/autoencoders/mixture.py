"""A mixture of discretised logistics over RGB pixels: green depends on red, blue on red and green (PixelCNN++).

Each pixel has one mixture index. Given the index, red, green and blue are drawn in turn, and the mean of a colour is
linear in the colours before it. The interface is that of `likelihoods.py`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Images, Key, PerSample, draw_array, sum_per_sample
from lsgm_jax.autoencoders.likelihoods import (
    MIN_LOG_SCALE,
    Features,
    check_density_below,
    logistic_log_mass,
    on_grid,
)

PerComponent = Float[Array, "batch height width mixtures"]
PerColour = Float[Array, "batch height width colours=3 mixtures"]


class Components(NamedTuple):
    """Parameters of the mixture, from the features.

    Attributes:
        logits: unnormalised log weights of the mixture.
        means: mean of each colour, before the contribution of the other colours.
        log_scales: log scale of each colour.
        coefficients: coefficients in (-1, 1) of R in the mean of G, of R in that of B, and of G in that of B.
    """

    logits: PerComponent
    means: PerColour
    log_scales: PerColour
    coefficients: PerColour


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOfLogistics:
    """A mixture of discretised logistics per pixel, coupled over its three colours.

    The features of a pixel are one logit per mixture, then for red, green and blue in turn the means, the log scales
    (clamped below at -7) and the coefficients (before the tanh) of all mixtures: 100 features for 10 mixtures.

    Attributes:
        levels: number of grey levels per colour.
        mixtures: number of mixture components.
        density_below: see `DiscretisedLogistic`; published results use 1e-5.
    """

    levels: int = 256
    mixtures: int = 10
    density_below: float = 0.0

    def __post_init__(self):
        if self.mixtures < 1:
            raise ValueError(f"mixtures={self.mixtures}: give at least one")
        check_density_below(self.density_below)

    def channels(self, image_channels: int) -> int:
        """Returns 10 `mixtures`: a logit, three means, three log scales and three coefficients per component."""
        if image_channels != 3:
            raise ValueError(
                f"a mixture of logistics couples red, green and blue and cannot describe {image_channels}-channel "
                "images: use discretised_logistic"
            )
        return 10 * self.mixtures

    def log_prob(self, features: Features, x: Images) -> PerSample:
        """Computes the log probability of the colours under the mixture, nats per image."""
        parts = self._split(features)
        red, green = x[..., 0:1], x[..., 1:2]
        slopes = jnp.moveaxis(parts.coefficients, -2, 0)
        shifts = jnp.stack(
            [jnp.zeros_like(slopes[0]), slopes[0] * red, slopes[1] * red + slopes[2] * green], -2
        )
        log_mass = logistic_log_mass(
            x[..., None], parts.means + shifts, parts.log_scales, self.levels, self.density_below
        )
        joint = jax.nn.log_softmax(parts.logits) + jnp.sum(log_mass, axis=-2)
        return sum_per_sample(jax.nn.logsumexp(joint, axis=-1))

    def mean(self, features: Features) -> Images:
        """Returns the image of the averaged means and coefficients of the mixture, as LSGM does.

        It approximates E[x], as means and coefficients are averaged separately.
        """
        parts = self._split(features)
        weights = jax.nn.softmax(parts.logits)[..., None, :]
        average = lambda values: jnp.sum(weights * values, axis=-1)
        return _in_turn(average(parts.means), average(parts.coefficients), _clip)

    def sample(self, features: Features, key: Key) -> Images:
        """Draws a component per pixel, then red, green and blue in turn.

        Each colour is rounded to the grid before the next depends on it.
        """
        k_component, k_colour = jax.random.split(key)
        shape = features.shape[:-1]
        uniform = functools.partial(jax.random.uniform, minval=jnp.finfo(features.dtype).tiny)
        u_component = draw_array(uniform, k_component, (*shape, self.mixtures), features.dtype)
        u_colour = draw_array(uniform, k_colour, (*shape, 3), features.dtype)
        return self.draw(features, u_component, u_colour, lambda colour: on_grid(colour, self.levels))

    def draw(
        self,
        features: Features,
        u_component: PerComponent,
        u_colour: Images,
        settle: Callable[[Array], Array] | None = None,
    ) -> Images:
        """Computes a sample from uniform random values in (0, 1).

        Args:
            features: output of the decoder.
            u_component: one value per component; the Gumbel-max trick chooses the component.
            u_colour: one value per colour, its quantile.
            settle: function applied to a colour before the next depends on it. None clips to [-1, 1], as LSGM does;
                `sample` rounds to the grid, which is required for samples that follow `log_prob`.
        """
        parts = self._split(features)
        chosen = jnp.argmax(parts.logits - jnp.log(-jnp.log(u_component)), axis=-1)[..., None, None]
        pick = lambda values: jnp.take_along_axis(values, chosen, axis=-1)[..., 0]
        spread = jnp.exp(pick(parts.log_scales)) * (jnp.log(u_colour) - jnp.log1p(-u_colour))
        return _in_turn(pick(parts.means) + spread, pick(parts.coefficients), settle or _clip)

    def _split(self, features: Features) -> Components:
        logits, rest = jnp.split(features, [self.mixtures], axis=-1)
        means, log_scales, coefficients = jnp.moveaxis(
            rest.reshape(*rest.shape[:-1], 3, 3, self.mixtures), -2, 0
        )
        return Components(logits, means, jnp.maximum(log_scales, MIN_LOG_SCALE), jnp.tanh(coefficients))


def _in_turn(values: Images, coefficients: Images, settle: Callable[[Array], Array]) -> Images:
    """Computes red, green and blue in turn; `settle` is applied to each before it shifts the next."""
    red = settle(values[..., 0])
    green = settle(values[..., 1] + coefficients[..., 0] * red)
    blue = settle(values[..., 2] + coefficients[..., 1] * red + coefficients[..., 2] * green)
    return jnp.stack([red, green, blue], axis=-1)


def _clip(colour: Array) -> Array:
    return jnp.clip(colour, -1.0, 1.0)
