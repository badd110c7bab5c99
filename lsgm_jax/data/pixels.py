"""Conversion of stored pixels to model inputs, for arrays of whole batches."""

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt

Stored = UInt[np.ndarray, "batch height width channels"]
FIXED_DRAW = 0  # seed of the draws that never change


def grey_values(levels: int) -> Float32[np.ndarray, "256"]:
    """Returns the model value of each uint8 value: `levels` equally wide steps from -1 to 1."""
    steps = np.arange(256) * levels // 256
    return (2.0 * steps / (levels - 1) - 1.0).astype(np.float32)


def class_values(levels: int) -> Float32[np.ndarray, "levels"]:
    """Returns the model value of each class: 2 k / (levels - 1) - 1 for class k of `levels`."""
    return (2.0 * np.arange(levels) / (levels - 1) - 1.0).astype(np.float32)


def quantise(image: UInt[np.ndarray, "..."], levels: int) -> Float32[np.ndarray, "..."]:
    """Reduces uint8 values to `levels` grey levels and maps them to [-1, 1]."""
    return grey_values(levels)[image]


def mirror(images: Stored, which: Bool[np.ndarray, "batch"]) -> Stored:
    """Returns a copy in which the images selected by `which` are mirrored, left to right."""
    mirrored = images.copy()
    mirrored[which] = images[which, :, ::-1]
    return mirrored


def thresholds(rng: np.random.Generator, shape: tuple[int, ...]) -> UInt[np.ndarray, "..."]:
    """Draws the thresholds of `bits`, 0 to 254 per pixel: a value of 0 never exceeds them, and 255 always does."""
    return rng.integers(0, 255, shape, np.uint8)


def fixed_thresholds(indices: Int[np.ndarray, "batch"], shape: tuple[int, ...]) -> Stored:
    """Returns thresholds that depend only on the index of an image in its split.

    Args:
        indices: of the images.
        shape: of one image.
    """
    return np.stack([thresholds(np.random.default_rng((FIXED_DRAW, index)), shape) for index in indices])


def bits(images: Stored, limits: Stored) -> Stored:
    """Binarises: returns 255 where a value exceeds its threshold (probability value / 255), else 0."""
    return np.where(limits < images, np.uint8(255), np.uint8(0))


def pad(images: Stored, border: int) -> UInt[np.ndarray, "batch padded_height padded_width channels"]:
    """Adds a border of zeros on every side."""
    if not border:
        return images
    return np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
