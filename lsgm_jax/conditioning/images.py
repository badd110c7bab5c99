"""Images as conditions: inpainting and super-resolution.

The published models concatenate the known part to the latent (Rombach et al. 2022, sections 4.4 and 4.5;
appendix E.2.2).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Condition, Images, Key, Latents, Params
from lsgm_jax.conditioning.protocol import Context
from lsgm_jax.nn.layers import Maps, Resized
from lsgm_jax.nn.network import PLAINLY, Compute

Masks = Float[Array, "batch height width 1"]
Encode = Callable[[Images], Latents]


@runtime_checkable
class Task(Protocol):
    """Restores an image from a part of it: makes conditions of training images, and maps of conditions."""

    def channels(self, latent_channels: int, image_channels: int) -> int:
        """Returns the number of channels of the maps."""
        ...

    def draw(self, key: Key, x: Images) -> Any:
        """Draws a condition for every training image."""
        ...

    def maps(self, encode: Encode, condition: Any, latent_shape: tuple[int, ...]) -> Resized:
        """Returns the condition at the size of the latents, [batch, height, width, channels]."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConcatMaps:
    """Maps of the size of the latents, concatenated to them; zeros are the null condition.

    Attributes:
        shape: (height, width, channels).
        dropout: probability of the null condition in training.
    """

    shape: tuple[int, int, int]
    dropout: float = 0.0
    source = None
    width = None

    def init(self, key: Key) -> Params:
        """Returns {}: there are no parameters."""
        return {}

    def null(self, count: int) -> Maps:
        """Returns zeros."""
        return jnp.zeros((count, *self.shape))

    def context(self, params: Params, condition: Condition, compute: Compute = PLAINLY) -> Context:
        """Returns the maps."""
        return Context(maps=condition)


class Masked(NamedTuple):
    """Images with holes.

    Attributes:
        x: in [-1, 1]; of no effect where the mask is 1.
        mask: 1 where the image is to be filled in, 0 where it is to be kept.
    """

    x: Images
    mask: Masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inpainting:
    """Inpainting. The condition is the latent of the image with its hole grey, and the mask, -1 to keep and 1 to fill.

    Attributes:
        smallest, largest: height and width of the holes in training, as shares of those of the image.
        rectangles: holes of each training image.
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
            raise ValueError(f"rectangles={self.rectangles}: give at least one")

    def channels(self, latent_channels: int, image_channels: int) -> int:
        """Returns the channels of the latent and one for the mask."""
        return latent_channels + 1

    def draw(self, key: Key, x: Images) -> Masked:
        """Draws rectangles of random place and size."""
        return Masked(x, rectangles(key, x.shape, self.rectangles, self.smallest, self.largest))

    def maps(self, encode: Encode, condition: Masked, latent_shape: tuple[int, ...]) -> Resized:
        """Returns latent and mask; the mask is reduced to single pixels, as published."""
        height, width, _ = latent_shape
        known = encode(condition.x * (1.0 - condition.mask))
        return jnp.concatenate([known, nearest(2.0 * condition.mask - 1.0, height, width)], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upscaling:
    """Super-resolution. The condition is the small image, of the height and width of the latents.

    A first stage of factor f makes images f times as large.
    """

    def channels(self, latent_channels: int, image_channels: int) -> int:
        """Returns the channels of the image."""
        return image_channels

    def draw(self, key: Key, x: Images) -> Images:
        """Returns the training images, which `maps` reduces."""
        return x

    def maps(self, encode: Encode, condition: Images, latent_shape: tuple[int, ...]) -> Resized:
        """Returns the images at the size of the latents, reduced by a bicubic filter if they are larger."""
        height, width, _ = latent_shape
        return reduced(condition, height, width)


def reduced(x: Images, height: int, width: int) -> Resized:
    """Resizes images: bicubic, with a filter as wide as a reduction."""
    return jax.image.resize(x, (len(x), height, width, x.shape[-1]), "bicubic")


def rectangles(key: Key, shape: tuple[int, ...], count: int, smallest: float, largest: float) -> Masks:
    """Draws masks [batch, height, width, 1]: 1 within `count` rectangles of each image, 0 elsewhere."""
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


def nearest(maps: Maps, height: int, width: int) -> Resized:
    """Resizes maps by picking single pixels, with indices rounded down: of each cell its top left corner.

    LDM reduces the masks of inpainting so. Resizers with half-pixel centres pick other pixels.
    """
    rows = jnp.arange(height) * maps.shape[1] // height
    columns = jnp.arange(width) * maps.shape[2] // width
    return maps[:, rows][:, :, columns]
