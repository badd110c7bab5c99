"""Images from parts of images: what an LDM's prior is told for inpainting and super-resolution.

The published models concatenate it to the latent (Rombach et al. 2022, section 4.4 and 4.5; appendix E.2.2).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Images, Key, Latents
from lsgm_jax.conditioning.maps import nearest
from lsgm_jax.nn.layers import Resized

Masks = Float[Array, "batch height width 1"]
Encode = Callable[[Images], Latents]


@runtime_checkable
class Task(Protocol):
    """What is known of an image, in training and as the prior is told."""

    def channels(self, latent_channels: int, image_channels: int) -> int:
        """Of the maps."""
        ...

    def draw(self, key: Key, x: Images) -> Any:
        """A condition for every training image."""
        ...

    def maps(self, encode: Encode, condition: Any, latent_shape: tuple[int, ...]) -> Resized:
        """The condition at the latents' sides, [batch, height, width, channels]."""
        ...


class Masked(NamedTuple):
    """Images of which a part is missing.

    Attributes:
        x: in [-1, 1]; of no effect where the mask is 1.
        mask: 1 where the image is to be filled in, 0 where it is to be kept.
    """

    x: Images
    mask: Masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inpainting:
    """The latent of the image with its missing part grey, and the mask, as -1 to keep and 1 to fill.

    Attributes:
        smallest, largest: sides of the rectangles that training leaves out, as shares of the image's.
        rectangles: of each training image.
    """

    smallest: float = 0.125
    largest: float = 0.5
    rectangles: int = 2

    def __post_init__(self):
        if not 0.0 < self.smallest <= self.largest <= 1.0:
            raise ValueError(
                f"smallest={self.smallest}, largest={self.largest}: give shares of the image's side, in order"
            )
        if self.rectangles < 1:
            raise ValueError(f"rectangles={self.rectangles}: leave out at least one")

    def channels(self, latent_channels: int, image_channels: int) -> int:
        """The latent's, and the mask."""
        return latent_channels + 1

    def draw(self, key: Key, x: Images) -> Masked:
        """Rectangles of any place and size."""
        return Masked(x, rectangles(key, x.shape, self.rectangles, self.smallest, self.largest))

    def maps(self, encode: Encode, condition: Masked, latent_shape: tuple[int, ...]) -> Resized:
        """Latent and mask; the mask is reduced to single pixels, as published."""
        height, width, _ = latent_shape
        known = encode(condition.x * (1.0 - condition.mask))
        return jnp.concatenate([known, nearest(2.0 * condition.mask - 1.0, height, width)], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upscaling:
    """The small image itself, which has the latents' sides: a first stage of factor f makes images f times as large."""

    def channels(self, latent_channels: int, image_channels: int) -> int:
        """The image's."""
        return image_channels

    def draw(self, key: Key, x: Images) -> Images:
        """The training images themselves, which `maps` reduces."""
        return x

    def maps(self, encode: Encode, condition: Images, latent_shape: tuple[int, ...]) -> Resized:
        """The images at the latents' sides, reduced by a bicubic filter as wide as the reduction if they are larger."""
        height, width, _ = latent_shape
        return reduced(condition, height, width)


def reduced(x: Images, height: int, width: int) -> Resized:
    """Images of other sides: bicubic, with a filter as wide as a reduction."""
    return jax.image.resize(x, (len(x), height, width, x.shape[-1]), "bicubic")


def rectangles(key: Key, shape: tuple[int, ...], count: int, smallest: float, largest: float) -> Masks:
    """Masks of images [batch, height, width, channels]: 1 within `count` rectangles of each, 0 elsewhere."""
    batch, height, width, _ = shape
    k_side, k_place = jax.random.split(key)
    side = jax.random.uniform(k_side, (2, batch, count), minval=smallest, maxval=largest)
    start = (1.0 - side) * jax.random.uniform(k_place, (2, batch, count))

    def within(axis: int, pixels: int) -> Array:
        centre = (jnp.arange(pixels) + 0.5) / pixels
        first, size = start[axis, :, :, None], side[axis, :, :, None]
        return (first <= centre) & (centre < first + size)

    inside = within(0, height)[:, :, :, None] & within(1, width)[:, :, None, :]
    return jnp.any(inside, axis=1)[..., None].astype(jnp.float32)
