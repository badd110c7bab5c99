"""Toy distributions of points in the plane, sampled from a seed.

Like the priors of the processes they have mean 0 and variance 1 per coordinate (the swiss roll approximately).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from lsgm_jax.data.sources import SPLIT_NAMES

LogDensity = Callable[[np.ndarray], np.ndarray]  # of points [n, 2], nats, [n]
NARROW = 0.1  # standard deviation of each of the eight Gaussians
_ANGLES = 2.0 * np.pi * np.arange(8) / 8.0
# The radius gives the mixture a variance of one.
CENTRES = np.sqrt(2.0 - 2.0 * NARROW**2) * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=-1)
DIAMONDS = np.sqrt(2.0 / 3.0 + 0.16 / 6.0)  # divisors that give variance one
BOARD = np.sqrt(16.0 / 12.0)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A sampler of points [count, 2], and the exact log density in nats where it has a closed form."""

    draw: Callable[[np.random.Generator, int], np.ndarray]
    log_density: LogDensity | None = None


def swiss_roll(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws points of a spiral of one and a half turns with a little Gaussian noise."""
    angle = 1.5 * np.pi * (1.0 + 2.0 * rng.random(count))
    points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=-1)
    return (points - [2.0, 0.2] + 0.5 * rng.standard_normal(points.shape)) / 6.8


def gaussians(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws points of a mixture of eight narrow Gaussians on a circle."""
    centres = CENTRES[rng.integers(0, 8, count)]
    return centres + NARROW * rng.standard_normal(centres.shape)


def gaussians_log_density(x: np.ndarray) -> np.ndarray:
    """Returns the log density of the mixture of eight Gaussians."""
    distance2 = ((x[:, None] - CENTRES) ** 2).sum(axis=-1)
    total = np.logaddexp.reduce(-0.5 * distance2 / NARROW**2, axis=1)
    return total - np.log(8.0 * 2.0 * np.pi * NARROW**2)


def diamonds(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws points of nine squares on a grid, each rotated by 45 degrees."""
    grid = rng.integers(-1, 2, (count, 2))
    square = rng.random((count, 2)) - 0.5
    turned = np.stack([square[:, 0] + square[:, 1], square[:, 0] - square[:, 1]], axis=-1)
    return (grid + 0.4 * turned) / DIAMONDS


def diamonds_log_density(x: np.ndarray) -> np.ndarray:
    """Returns the log density: uniform over nine squares of half diagonal 0.4, -inf elsewhere."""
    x = x * DIAMONDS
    nearest = np.clip(np.round(x), -1.0, 1.0)
    inside = np.abs(x - nearest).sum(axis=-1) <= 0.4
    return np.where(inside, np.log(DIAMONDS**2 / (9.0 * 2.0 * 0.4**2)), -np.inf)


def checkerboard(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws points of the eight black squares of a 4 x 4 board."""
    column, half = rng.integers(0, 4, count), rng.integers(0, 2, count)
    corner = np.stack([column, 2 * half + column % 2], axis=-1)
    return (corner + rng.random((count, 2)) - 2.0) / BOARD


def checkerboard_log_density(x: np.ndarray) -> np.ndarray:
    """Returns the log density: uniform over the eight black squares, -inf elsewhere."""
    square = np.floor(x * BOARD) + 2.0
    black = ((square >= 0.0) & (square < 4.0)).all(axis=-1) & (square.sum(axis=-1) % 2 == 0)
    return np.where(black, np.log(BOARD**2 / 8.0), -np.inf)


DISTRIBUTIONS: dict[str, Distribution] = {
    "swiss_roll": Distribution(swiss_roll),
    "gaussians": Distribution(gaussians, gaussians_log_density),
    "diamonds": Distribution(diamonds, diamonds_log_density),
    "checkerboard": Distribution(checkerboard, checkerboard_log_density),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointSpec:
    """Points of one of the `DISTRIBUTIONS`.

    Attributes:
        source: name of the distribution.
        batch_size: points per step, over all processes.
        counts: numbers of points for training, validation and test.
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
        """The shape of one point."""
        return (2,)

    @property
    def bin_width(self) -> float:
        """0: points are continuous."""
        return 0.0

    def open(self, split: str, *, decode: bool = True) -> "Points":
        """Draws the points of "train", "validation" or "test"; each split has its own fixed seed."""
        index = SPLIT_NAMES.index(split)
        points = DISTRIBUTIONS[self.source].draw(np.random.default_rng(index), self.counts[index])
        return Points(self, points.astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Points:
    """The points [count, 2] of one split."""

    spec: PointSpec
    points: np.ndarray
    in_memory: bool = True
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.points)

    def batch(
        self, indices: np.ndarray, rng: np.random.Generator | None = None, rows: slice = slice(None)
    ) -> dict[str, np.ndarray]:
        """Returns {"x": [rows of batch, 2]}."""
        return {"x": self.points[indices[rows]]}

    def label(self, index: int) -> None:
        """Returns None: points have no labels."""

    def captions(self, index: int) -> None:
        """Returns None: points have no texts."""
