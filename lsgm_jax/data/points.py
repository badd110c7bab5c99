"""Distributions of points in the plane, drawn anew from a seed: what diffusions are looked at with.

They are centred, with a variance of one per coordinate, as the processes' priors are (the swiss roll about so).
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from lsgm_jax.data.sources import SPLIT_NAMES


def swiss_roll(rng: np.random.Generator, count: int) -> np.ndarray:
    """A spiral of one and a half turns, slightly blurred."""
    angle = 1.5 * np.pi * (1.0 + 2.0 * rng.random(count))
    points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=-1)
    return (points - [2.0, 0.2] + 0.5 * rng.standard_normal(points.shape)) / 6.8


def gaussians(rng: np.random.Generator, count: int) -> np.ndarray:
    """Eight narrow Normal distributions on a circle."""
    angle = 2.0 * np.pi * rng.integers(0, 8, count) / 8.0
    centres = np.sqrt(2.0 - 2.0 * 0.01) * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return centres + 0.1 * rng.standard_normal(centres.shape)


def diamonds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Nine squares that stand on their corners, on a grid."""
    grid = rng.integers(-1, 2, (count, 2))
    square = rng.random((count, 2)) - 0.5
    turned = np.stack([square[:, 0] + square[:, 1], square[:, 0] - square[:, 1]], axis=-1)
    return (grid + 0.4 * turned) / np.sqrt(2.0 / 3.0 + 0.16 / 6.0)


def checkerboard(rng: np.random.Generator, count: int) -> np.ndarray:
    """The eight black squares of a board of four by four."""
    column, half = rng.integers(0, 4, count), rng.integers(0, 2, count)
    corner = np.stack([column, 2 * half + column % 2], axis=-1)
    return (corner + rng.random((count, 2)) - 2.0) / np.sqrt(16.0 / 12.0)


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "swiss_roll": swiss_roll,
    "gaussians": gaussians,
    "diamonds": diamonds,
    "checkerboard": checkerboard,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointSpec:
    """Points of one of the `DISTRIBUTIONS`.

    Attributes:
        source: its name.
        batch_size: points per step, over all processes.
        counts: points for training, validation and test.
    """

    source: str
    batch_size: int = 512
    counts: tuple[int, ...] = (100_000, 5_000, 10_000)

    def __post_init__(self):
        if self.source not in DISTRIBUTIONS:
            raise ValueError(f"source={self.source!r} is none of {', '.join(DISTRIBUTIONS)}")
        if len(self.counts) != 3 or min(self.counts) < 1:
            raise ValueError(f"counts={self.counts}: give one each for training, validation and test")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: give a positive number")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point."""
        return (2,)

    @property
    def bin_width(self) -> float:
        """0: points are continuous."""
        return 0.0

    def open(self, split: str, *, decode: bool = True) -> "Points":
        """The points of "train", "validation" or "test", each split from a seed of its own."""
        index = SPLIT_NAMES.index(split)
        points = DISTRIBUTIONS[self.source](np.random.default_rng(index), self.counts[index])
        return Points(self, points.astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Points:
    """Points that have been drawn, [count, 2]."""

    spec: PointSpec
    points: np.ndarray
    in_memory: bool = True

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """{"x": [batch, 2]}."""
        return {"x": self.points[indices]}

    def label(self, index: int) -> None:
        """Points have none."""
