"""Batches of stored pixels to the values that a model sees, on arrays of whole batches."""

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt

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


def mirror(images: Stored, which: Bool[np.ndarray, "batch"]) -> Stored:
    """A copy in which some images are mirrored, left for right."""
    mirrored = images.copy()
    mirrored[which] = images[which, :, ::-1]
    return mirrored


def thresholds(rng: np.random.Generator, shape: tuple[int, ...]) -> UInt[np.ndarray, "..."]:
    """What `bits` wants: one of 0 ... 254 per pixel, so that a value of 0 is never above it and 255 always."""
    return rng.integers(0, 255, shape, np.uint8)


def fixed_thresholds(indices: Int[np.ndarray, "batch"], shape: tuple[int, ...]) -> Stored:
    """Thresholds that depend on an image's index in its split alone: the same every time.

    Args:
        shape: of one image.
    """
    return np.stack([thresholds(np.random.default_rng((FIXED_DRAW, index)), shape) for index in indices])


def bits(images: Stored, limits: Stored) -> Stored:
    """255 where a value is above its threshold, which has the probability value / 255, else 0."""
    return np.where(limits < images, np.uint8(255), np.uint8(0))


def pad(images: Stored, border: int) -> UInt[np.ndarray, "batch padded_height padded_width channels"]:
    """Adds a border of zeros on every side."""
    if not border:
        return images
    return np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
