"""Mean and covariance of a set too large to hold, batch by batch, as exact as if it were held."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """What a set of vectors contributes to its mean and covariance, float64.

    Attributes:
        size: how many vectors.
        mean: their mean.
        scatter: sum over vectors of the outer product of their deviation from the mean with itself.
    """

    size: int
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """The unbiased estimate, which takes two vectors at least."""
        return self.scatter / (self.size - 1)


def moments_of(x: Float[np.ndarray, "n d"]) -> Moments:
    """The moments of the rows of `x`."""
    wide = x.astype(np.float64)
    mean = wide.mean(axis=0)
    deviations = wide - mean
    return Moments(len(wide), mean, deviations.T @ deviations)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets together (Chan, Golub and LeVeque 1983): no average of statistics, the whole's own."""
    size = a.size + b.size
    difference = b.mean - a.mean
    mean = a.mean + difference * (b.size / size)
    between = np.outer(difference, difference) * (a.size * b.size / size)
    return Moments(size, mean, a.scatter + b.scatter + between)
