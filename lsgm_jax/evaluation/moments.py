"""Mean and covariance of a set of vectors, accumulated batch by batch without loss of accuracy."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """Size, mean and scatter matrix of a set of vectors, float64.

    Attributes:
        size: number of vectors.
        mean: their mean.
        scatter: sum of the outer products of the deviations from the mean.
    """

    size: int
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """The unbiased estimate; needs at least two vectors."""
        return self.scatter / (self.size - 1)


def moments_of(x: Float[np.ndarray, "n d"]) -> Moments:
    """Computes the moments of the rows of `x`."""
    wide = x.astype(np.float64)
    mean = wide.mean(axis=0)
    deviations = wide - mean
    return Moments(len(wide), mean, deviations.T @ deviations)


def merge(a: Moments, b: Moments) -> Moments:
    """Computes the moments of the union of two sets exactly (Chan, Golub and LeVeque 1983)."""
    size = a.size + b.size
    difference = b.mean - a.mean
    mean = a.mean + difference * (b.size / size)
    between = np.outer(difference, difference) * (a.size * b.size / size)
    return Moments(size, mean, a.scatter + b.scatter + between)
