"""Points in the plane: standardised, reproducible, each split its own."""

import numpy as np
import pytest

from lsgm_jax.data.pipeline import training_batches, whole_split
from lsgm_jax.data.points import DISTRIBUTIONS, PointSpec


@pytest.mark.parametrize("source", DISTRIBUTIONS)
def test_points_are_centred_with_variance_one(source):
    """As the docstring says: to a percent, the swiss roll's to a fifth."""
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
