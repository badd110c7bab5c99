"""Batches of stored pixels to the values that a model sees, on arrays of whole batches."""

import numpy as np
from jaxtyping import Float32, Int, UInt

Stored = UInt[np.ndarray, "batch height width channels"]
FIXED_DRAW = 0  # seed of the draws that never change


def grey_values(levels: int) -> Float32[np.ndarray, "256"]:
    """Where each uint8 value goes: onto `levels` equally wide steps, from -1 to 1."""
    steps = np.arange(256) * levels // 256
    return (2.0 * steps / (levels - 1) - 1.0).astype(np.float32)


def class_values(levels: int) -> Float32[np.ndarray, "levels"]:
    """Where each class goes: class k of `levels` is 2 k / (levels - 1) - 1."""
    return (2.0 * np.arange(levels) / (levels - 1) - 1.0).astype(np.float32)


def quantise(image: UInt[np.ndarray, "..."], levels: int) -> Float32[np.ndarray, "..."]:
    """Reduces uint8 values to `levels` grey levels and maps them to [-1, 1]."""
    return grey_values(levels)[image]


def flip_half(images: Stored, rng: np.random.Generator) -> Stored:
    """A copy in which every image is mirrored, left for right, with probability 1/2."""
    mirrored, flipped = rng.random(len(images)) < 0.5, images.copy()
    flipped[mirrored] = images[mirrored, :, ::-1]
    return flipped


def draw_bits(images: Stored, rng: np.random.Generator) -> Stored:
    """255 with probability value / 255, independently for each pixel, else 0."""
    return _bits(images, rng.integers(0, 255, images.shape, np.uint8))


def fixed_bits(images: Stored, indices: Int[np.ndarray, "batch"]) -> Stored:
    """Like `draw_bits`, with draws that depend on an image's index in its split alone: the same every time."""
    shape = images.shape[1:]
    draws = [
        np.random.default_rng((FIXED_DRAW, index)).integers(0, 255, shape, np.uint8) for index in indices
    ]
    return _bits(images, np.stack(draws))


def _bits(images: Stored, draws: Stored) -> Stored:
    # A draw is one of 0 ... 254, so that 0 is never above one and 255 always.
    return np.where(draws < images, np.uint8(255), np.uint8(0))


def pad(images: Stored, border: int) -> UInt[np.ndarray, "batch padded_height padded_width channels"]:
    """Adds a border of zeros on every side."""
    if not border:
        return images
    return np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
