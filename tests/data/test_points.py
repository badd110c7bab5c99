"""Points in the plane are standardised and reproducible, and the splits are disjoint."""

import numpy as np
import pytest

from lsgm_jax.data.pipeline import training_batches, whole_split
from lsgm_jax.data.points import DISTRIBUTIONS, PointSpec


@pytest.mark.parametrize("source", DISTRIBUTIONS)
def test_points_are_centred_with_variance_one(source):
    """To 1 %; the swiss roll to 20 %."""
    points = whole_split(PointSpec(source=source), "train").astype(np.float64)
    tolerance = 0.1 if source == "swiss_roll" else 0.01
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=tolerance)
    np.testing.assert_allclose(points.var(axis=0), 1.0, atol=2 * tolerance)


def test_splits_repeat_and_share_nothing():
    spec = PointSpec(source="checkerboard", counts=(100, 100, 100))
    train, again, test = (whole_split(spec, split) for split in ("train", "train", "test"))
    np.testing.assert_array_equal(train, again)
    assert not set(map(tuple, train)) & set(map(tuple, test))


def test_batches_pass_over_every_point():
    spec = PointSpec(source="diamonds", batch_size=25, counts=(100, 10, 10))
    batches = training_batches(spec.open("train"), seed=0)
    epoch = np.concatenate([next(batches)["x"] for _ in range(4)])
    assert {*map(tuple, epoch)} == {*map(tuple, whole_split(spec, "train"))}


def test_an_unknown_distribution_is_named():
    with pytest.raises(ValueError, match=r"source='moons' is none of swiss_roll, gaussians"):
        PointSpec(source="moons")


KNOWN = [source for source, distribution in DISTRIBUTIONS.items() if distribution.log_density]


@pytest.mark.parametrize("source", KNOWN)
def test_densities_integrate_to_one(source):
    """By the midpoint rule, which is less accurate at the edges of the uniform ones."""
    side = np.linspace(-3.0, 3.0, 1201)
    middle = 0.5 * (side[1:] + side[:-1])
    grid = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)
    total = np.exp(DISTRIBUTIONS[source].log_density(grid)).sum() * (side[1] - side[0]) ** 2
    np.testing.assert_allclose(total, 1.0, atol=1e-9 if source == "gaussians" else 5e-3)


@pytest.mark.parametrize("source", KNOWN)
def test_draws_have_the_entropy_of_their_density(source):
    """Exactly for the uniform ones, whose density is constant; the modes of the mixture do not overlap."""
    points = whole_split(PointSpec(source=source), "test").astype(np.float64)
    log_density = DISTRIBUTIONS[source].log_density(points)
    mode = np.log(8.0) + 1.0 + np.log(2.0 * np.pi * 0.01)
    squares = {"diamonds": 9.0 * 0.32 / (2.0 / 3.0 + 0.16 / 6.0), "checkerboard": 8.0 / (16.0 / 12.0)}
    entropy = mode if source == "gaussians" else np.log(squares[source])
    error = log_density.std() / np.sqrt(len(points))
    np.testing.assert_allclose(-log_density.mean(), entropy, atol=4.0 * error + 1e-12)


@pytest.mark.parametrize("source", KNOWN)
def test_densities_fit_the_draws_cell_by_cell(source):
    """The fraction of draws in each cell of a grid is the integral of the density over the cell."""
    points, side = whole_split(PointSpec(source=source), "train"), np.linspace(-2.4, 2.4, 25)
    fine = np.linspace(-2.4, 2.4, 24 * 40 + 1)
    middle = 0.5 * (fine[1:] + fine[:-1])
    grid = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1).reshape(-1, 2)
    density = np.exp(DISTRIBUTIONS[source].log_density(grid)).reshape(24, 40, 24, 40)
    expected = density.sum(axis=(1, 3)) * (fine[1] - fine[0]) ** 2
    found = np.histogram2d(*points.T, bins=(side, side))[0] / len(points)
    np.testing.assert_allclose(found, expected, atol=2e-3)
