"""Distances between two sets of vectors, which are samples or features of images: FID, KID, precision and recall.

SciPy and scikit-learn are imported where they are used: they take a second, and most commands need neither.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from lsgm_jax.evaluation.moments import Moments

Vectors = Float[np.ndarray, "n d"]
OtherVectors = Float[np.ndarray, "m d"]


class Spread(NamedTuple):
    """Mean and standard deviation over `subsets` random subsets, each of `size` vectors.

    Where a subset is all of a set, the deviation says nothing of how far another set would be; `varies` is then False.
    """

    mean: float
    std: float
    subsets: int
    size: int
    varies: bool = True


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: samples on the manifold of real images, and real images on the manifold of samples."""

    precision: float
    recall: float


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Computes the unbiased estimate of 2 E|x - y| - E|x - x'| - E|y - y'| (Szekely and Rizzo 2013).

    Norms are Euclidean, and the distance has the units of the data. It is zero for equal distributions; estimates
    scatter around zero then.

    Args:
        x, y: at least two samples each, [n, ...] and [m, ...].

    Raises:
        ValueError: for fewer.
    """
    from scipy.spatial.distance import cdist

    _require(2, x, y)
    x, y = (z.reshape(len(z), -1).astype(np.float64) for z in (x, y))
    within = sum(cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    return float(2.0 * cdist(x, y).mean() - within)


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, *, directions: int = 64, seed: int = 0) -> float:
    """Computes the mean over directions u of the 1-Wasserstein distance of u . x and u . y (Bonneel et al. 2015).

    It has the units of the data. Estimates are positive even for equal distributions, where they fall with the root
    of the number of samples.

    Args:
        x, y: samples, [n, ...] and [m, ...].
        directions: number of directions, uniform on the sphere.
        seed: seed of the directions. Use one seed for all values that are compared.
    """
    from scipy.stats import wasserstein_distance

    x, y = (z.reshape(len(z), -1).astype(np.float64) for z in (x, y))
    towards = np.random.default_rng(seed).standard_normal((directions, x.shape[1]))
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    slices = zip(towards @ x.T, towards @ y.T, strict=True)
    return float(np.mean([wasserstein_distance(left, right) for left, right in slices]))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Computes |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the FID for Inception features (Heusel et al. 2017).

    It is the squared 2-Wasserstein distance of two Gaussians (Dowson and Landau 1982). With C = R R^T the trace of the
    root is the sum of the singular values of R_a^T R_b. This avoids the product of covariances, so singular
    covariances, from fewer vectors than dimensions, lose no digits.
    """
    root_a, root_b = (_root(moments.covariance) for moments in (a, b))
    overlap = np.linalg.svd(root_a.T @ root_b, compute_uv=False).sum()
    traces = (np.trace(moments.covariance) for moments in (a, b))
    distance = np.sum((a.mean - b.mean) ** 2) + sum(traces) - 2.0 * overlap
    return float(max(distance, 0.0))  # rounding may make that of equal sets negative


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Returns R with R R^T = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))  # rounding may make zero eigenvalues negative


def kernel_mmd(x: Vectors, y: OtherVectors) -> float:
    """Computes the unbiased squared maximum mean discrepancy for (x . y / d + 1)^3 (Gretton et al. 2012, eq. 3).

    Its expectation over independent sets is zero if the distributions are equal; single estimates may be negative.

    Raises:
        ValueError: for sets of fewer than two vectors.
    """
    _require(2, x, y)
    x, y = x.astype(np.float64), y.astype(np.float64)
    within = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (_kernel(x, x), _kernel(y, y)))
    return float(within - 2.0 * _kernel(x, y).mean())


def _kernel(x: Vectors, y: OtherVectors) -> Float[np.ndarray, "n m"]:
    base = x @ y.T / x.shape[1] + 1.0
    return base * base * base  # a general power is many times slower


def kernel_distance(
    x: Vectors,
    y: OtherVectors,
    *,
    subsets: int = 100,
    size: int = 1000,
    seed: int = 0,
    label: str | None = None,
) -> Spread:
    """Computes `kernel_mmd` on random subsets of both sets, the KID for Inception features (Binkowski et al. 2018).

    Args:
        subsets: number of pairs of subsets.
        size: vectors per subset, drawn without replacement; the size of the smaller set if that is less.
        seed: seed of the subsets.
        label: name of the progress bar; None hides it.

    Raises:
        ValueError: for sets of fewer than two vectors.
    """
    rng = np.random.default_rng(seed)
    size = min(size, len(x), len(y))
    if size == len(x) == len(y):
        return Spread(kernel_mmd(x, y), 0.0, subsets, size, varies=False)
    draw = lambda z: z[rng.choice(len(z), size, replace=False)]
    rounds = tqdm(range(subsets), desc=label, disable=label is None, leave=False)
    values = [kernel_mmd(draw(x), draw(y)) for _ in rounds]
    return Spread(float(np.mean(values)), float(np.std(values)), subsets, size, size < min(len(x), len(y)))


def precision_recall(
    real: Vectors, generated: OtherVectors, *, k: int = 3, label: str | None = None
) -> PrecisionRecall:
    """Computes improved precision and recall (Kynkaanniemi et al. 2019, eqs. 1 and 2).

    The manifold of a set is the union of balls around its vectors, each with the distance to the k-th nearest neighbour
    as radius. Precision is the share of generated vectors on the manifold of the real ones. Recall is the share of real
    vectors on the manifold of the generated ones.

    Args:
        real, generated: more than k vectors each.
        k: number of the neighbour that sets the radius.
        label: name of the progress bar; None hides it.

    Raises:
        ValueError: for sets of no more than k vectors.
    """
    _require(k + 1, real, generated)
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    with tqdm(total=2 * (len(real) + len(generated)), desc=label, disable=label is None, leave=False) as bar:
        precision = _on_manifold(real, generated, k, bar).mean()
        recall = _on_manifold(generated, real, k, bar).mean()
    return PrecisionRecall(float(precision), float(recall))


def _require(least: int, *sets: np.ndarray) -> None:
    fewest = min(map(len, sets))
    if fewest < least:
        raise ValueError(f"a set of {fewest}: this distance takes {least} at least")


def _on_manifold(of: Vectors, candidates: OtherVectors, k: int, bar: tqdm) -> Bool[np.ndarray, "m"]:
    """Returns for each candidate whether it lies on the manifold of `of`."""
    # Each vector is its own zeroth neighbour.
    radii = _reduced(of, of, lambda block: np.partition(block, k, axis=1)[:, k], bar)
    return _reduced(candidates, of, lambda block: (block <= radii).any(axis=1), bar)


def _reduced(
    rows: np.ndarray, columns: np.ndarray, reduce: Callable[[np.ndarray], Any], bar: tqdm
) -> np.ndarray:
    """Applies `reduce` to the rows of the distance matrix; only a block of rows is in memory at a time."""
    from sklearn.metrics import pairwise_distances_chunked

    same = None if columns is rows else columns  # None makes the diagonal exactly zero
    parts = []
    for part in pairwise_distances_chunked(rows, same, reduce_func=lambda block, start: reduce(block)):
        parts.append(part)
        bar.update(len(part))
    return np.concatenate(parts)
