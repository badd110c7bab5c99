"""Tests distances between sets of vectors against closed forms, enumeration and independent code."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
from sklearn.metrics.pairwise import polynomial_kernel

from lsgm_jax.evaluation.fid import (
    energy_distance,
    frechet_distance,
    kernel_distance,
    kernel_mmd,
    precision_recall,
    sliced_wasserstein,
)
from lsgm_jax.evaluation.moments import Moments, merge, moments_of

RNG = np.random.default_rng(0)


def gaussian(mean, covariance):
    """Returns moments with exactly this covariance."""
    return Moments(11, np.asarray(mean, float), 10.0 * np.asarray(covariance, float))


def random_covariance(d, rng):
    root = rng.normal(size=(d, d))
    return root @ root.T


# Moments


def test_merged_moments_are_those_of_the_union():
    """Batches have unequal sizes and unequal means, so averages of their statistics would be wrong."""
    x = RNG.normal(size=(37, 5)) @ RNG.normal(size=(5, 5)) + np.arange(37)[:, None]
    whole = moments_of(x[:1])
    for part in np.split(x, [1, 3, 20, 36])[1:]:
        whole = merge(whole, moments_of(part))
    assert whole.size == 37
    np.testing.assert_allclose(whole.mean, x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(whole.covariance, np.cov(x, rowvar=False), rtol=1e-12)


def test_moments_of_float32_lose_no_digits_far_from_zero():
    x = (1e4 + RNG.normal(size=(1000, 3))).astype(np.float32)
    first, *others = (moments_of(batch) for batch in np.split(x, 10))
    whole = first
    for other in others:
        whole = merge(whole, other)
    np.testing.assert_allclose(whole.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-10)


# Sliced Wasserstein distance


def test_sliced_wasserstein_on_a_line_is_wasserstein():
    """In one dimension all directions agree, also for sets of unequal size."""
    x, y = RNG.normal(size=(30, 1)), 2.0 * RNG.normal(size=(41, 1)) + 1.0
    expected = scipy.stats.wasserstein_distance(x[:, 0], y[:, 0])
    np.testing.assert_allclose(sliced_wasserstein(x, y, directions=3), expected, rtol=1e-12)


def test_sliced_wasserstein_of_a_translation():
    """A translation by b moves every slice by |b| |cos|; the mean of |cos| in the plane is 2 / pi."""
    x, shift = RNG.normal(size=(50, 2)), np.array([3.0, -4.0])
    found = sliced_wasserstein(x, x + shift, directions=4000)
    np.testing.assert_allclose(found, 5.0 * 2.0 / np.pi, rtol=0.02)
    assert found == sliced_wasserstein(x, x + shift, directions=4000)
    assert found != sliced_wasserstein(x, x + shift, directions=4000, seed=1)


def test_sliced_wasserstein_is_a_distance():
    x, y, z = (RNG.normal(size=(20, 2, 3)) * scale for scale in (0.5, 1.0, 2.0))
    assert sliced_wasserstein(x, x[::-1]) < 1e-15
    assert 0.0 < sliced_wasserstein(x, z) < sliced_wasserstein(x, y) + sliced_wasserstein(y, z)


# Frechet distance


def test_frechet_distance_of_commuting_covariances():
    """With common axes it is the squared distance of the means plus that of the standard deviations."""
    axes, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    a, b, difference = RNG.uniform(0.1, 3.0, 6), RNG.uniform(0.1, 3.0, 6), RNG.normal(size=6)
    left = gaussian(np.zeros(6), axes @ np.diag(a**2) @ axes.T)
    right = gaussian(difference, axes @ np.diag(b**2) @ axes.T)
    expected = difference @ difference + np.sum((a - b) ** 2)
    np.testing.assert_allclose(frechet_distance(left, right), expected, rtol=1e-12)


def test_frechet_distance_of_covariances_that_do_not_commute():
    """In two dimensions tr (C_a C_b)^(1/2) = sqrt(tr C_a C_b + 2 sqrt(det C_a C_b))."""
    a, b = random_covariance(2, RNG), random_covariance(2, RNG)
    assert np.abs(a @ b - b @ a).max() > 0.1
    overlap = np.sqrt(np.trace(a @ b) + 2.0 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    expected = np.trace(a + b) - 2.0 * overlap
    zero = np.zeros(2)
    np.testing.assert_allclose(frechet_distance(gaussian(zero, a), gaussian(zero, b)), expected, rtol=1e-11)


def test_frechet_distance_agrees_with_the_root_of_the_product():
    a, b, difference = random_covariance(20, RNG), random_covariance(20, RNG), RNG.normal(size=20)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = difference @ difference + np.trace(a + b - 2.0 * root)
    found = frechet_distance(gaussian(difference, a), gaussian(np.zeros(20), b))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_frechet_distance_of_singular_covariances():
    """With rank one each it is |a|^2 + |b|^2 - 2 |a . b|; a root of the product would lose half the digits."""
    a, b, zero = RNG.normal(size=50), RNG.normal(size=50), np.zeros(50)
    found = frechet_distance(gaussian(zero, np.outer(a, a)), gaussian(zero, np.outer(b, b)))
    np.testing.assert_allclose(found, a @ a + b @ b - 2.0 * abs(a @ b), rtol=1e-7)
    few = moments_of(RNG.normal(size=(8, 50)))
    assert abs(frechet_distance(few, few)) < 1e-12 * np.trace(few.covariance)


def test_the_root_of_the_frechet_distance_is_a_metric_and_invariant_under_rotations():
    sets = [
        moments_of(RNG.normal(size=(40, 4)) @ RNG.normal(size=(4, 4)) + RNG.normal(size=4)) for _ in range(3)
    ]
    turn, _ = np.linalg.qr(RNG.normal(size=(4, 4)))
    shift = RNG.normal(size=4)
    a, b, c = sets
    np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-12)
    turned = [Moments(m.size, m.mean @ turn + shift, turn.T @ m.scatter @ turn) for m in (a, b)]
    np.testing.assert_allclose(frechet_distance(*turned), frechet_distance(a, b), rtol=1e-11)
    ab, bc, ac = (np.sqrt(frechet_distance(*pair)) for pair in ((a, b), (b, c), (a, c)))
    assert ac < ab + bc


# Kernel distance


def population_mmd(p, q):
    """Computes the squared MMD of the uniform distributions on these points."""
    kernel = lambda x, y: polynomial_kernel(x, y, degree=3, gamma=1.0 / p.shape[1], coef0=1.0).mean()
    return kernel(p, p) + kernel(q, q) - 2.0 * kernel(p, q)


@pytest.mark.parametrize("same", [True, False])
def test_kernel_mmd_is_unbiased(same):
    """Its mean over all possible sets is that of the distributions, and exactly zero if they are equal."""
    p = RNG.normal(size=(3, 2))
    q = p if same else RNG.normal(size=(4, 2))
    draws = lambda points, count: itertools.product(range(len(points)), repeat=count)
    values = [kernel_mmd(p[list(i)], q[list(j)]) for i in draws(p, 2) for j in draws(q, 3)]
    np.testing.assert_allclose(np.mean(values), population_mmd(p, q), atol=1e-12)
    assert np.std(values) > 0.1
    assert (population_mmd(p, q) > 0.01) != same


def test_kernel_distance_of_full_sets_does_not_vary():
    x, y = RNG.normal(size=(9, 4)), RNG.normal(size=(9, 4)) + 1.0
    full = kernel_distance(x, y, subsets=3, size=1000)
    np.testing.assert_allclose(full.mean, kernel_mmd(x, y), rtol=1e-12)
    assert full.std < 1e-12
    assert (full.subsets, full.size, full.varies) == (3, 9, False)
    assert not kernel_distance(x, np.concatenate([y, x]), subsets=2).varies  # the subset is all of x
    subsets = kernel_distance(x, y, subsets=50, size=5)
    assert subsets.std > 0.01
    assert subsets == kernel_distance(x, y, subsets=50, size=5)
    assert subsets != kernel_distance(x, y, subsets=50, size=5, seed=1)


# Precision and recall


def test_precision_and_recall_on_a_line():
    """The real points 0, ..., 9 have their third neighbours at distance 2, the ends at 3; the manifold is [-3, 12]."""
    real = np.arange(10.0)[:, None]
    # Four on the manifold, with radii 0.4, 0.3, 0.3 and 0.4, which cover the real point 5 alone. Four far from it.
    generated = np.array([4.8, 4.9, 5.1, 5.2, 2000.0, 2030.0, 2060.0, 2090.0])[:, None]
    assert precision_recall(real, generated, k=3) == (0.5, 0.1)


def test_precision_and_recall_of_known_sets():
    cloud = RNG.normal(size=(30, 3))
    assert precision_recall(cloud, cloud) == (1.0, 1.0)
    assert precision_recall(cloud, cloud + 1e3) == (0.0, 0.0)
    # Samples of one of two modes: all are on the real manifold, and they cover half of the real points.
    modes = np.concatenate([cloud, cloud + 1e3])
    assert precision_recall(modes, cloud + 1e-9) == (1.0, 0.5)
    assert precision_recall(cloud, modes) == (0.5, 1.0)


def test_precision_and_recall_agree_with_the_full_distance_matrix():
    real, generated = RNG.normal(size=(40, 5)), 1.3 * RNG.normal(size=(33, 5))

    def share(of, candidates, k):
        radii = np.sort(scipy.spatial.distance.cdist(of, of), axis=1)[:, k]
        return (scipy.spatial.distance.cdist(candidates, of) <= radii).any(axis=1).mean()

    for k in (1, 3):
        found = precision_recall(real, generated, k=k)
        assert found == (share(real, generated, k), share(generated, real, k))
        assert 0.0 < found.precision < 1.0


# Degenerate sets


@pytest.mark.parametrize("vectors", [2, 3, 8])
def test_frechet_distance_of_fewer_vectors_than_dimensions(vectors):
    """A translation by b gives |b|^2. Sets x and -x have one covariance and means m and -m: |2 m|^2."""
    x, shift = RNG.normal(size=(vectors, 50)), RNG.normal(size=50)
    found = frechet_distance(moments_of(x), moments_of(x + shift))
    np.testing.assert_allclose(found, shift @ shift, rtol=1e-9)
    mean = x.mean(axis=0)
    np.testing.assert_allclose(frechet_distance(moments_of(x), moments_of(-x)), 4.0 * mean @ mean, rtol=1e-9)


def test_distances_of_constant_features():
    """Without any variance the Fréchet distance is that of the means; with it on one side, its trace more."""
    still, x = np.ones((5, 3)), RNG.normal(size=(40, 3))
    assert frechet_distance(moments_of(still), moments_of(still)) == 0.0
    np.testing.assert_allclose(frechet_distance(moments_of(still), moments_of(3.0 * still)), 12.0, rtol=1e-12)
    whole = moments_of(x)
    expected = np.sum((whole.mean - 1.0) ** 2) + np.trace(whole.covariance)
    np.testing.assert_allclose(frechet_distance(whole, moments_of(still)), expected, rtol=1e-10)
    assert kernel_distance(still, still, subsets=4, size=3)[:2] == (0.0, 0.0)
    assert precision_recall(still, still) == (1.0, 1.0)
    assert energy_distance(still, still) == 0.0


@pytest.mark.parametrize("distance", [kernel_mmd, kernel_distance, energy_distance])
def test_a_single_vector_has_no_distance(distance):
    with pytest.raises(ValueError, match="a set of 1: this distance takes 2 at least"):
        distance(np.ones((1, 3)), np.ones((5, 3)))


def test_a_manifold_takes_more_vectors_than_neighbours():
    with pytest.raises(ValueError, match="a set of 3: this distance takes 4 at least"):
        precision_recall(np.ones((3, 2)), np.ones((9, 2)))
