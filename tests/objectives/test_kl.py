"""The KL term: warm-up schedule, groups and balancing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.objectives import kl


def test_coefficient_is_constant_then_linear_then_constant():
    steps = jnp.asarray([0, 9, 10, 35, 60, 1000])
    schedule = kl.KLSchedule(start=0.2, end=0.7, constant=10, steps=50)
    values = jax.vmap(lambda step: schedule(step).coefficient)(steps)
    np.testing.assert_allclose(values, [0.2, 0.2, 0.2, 0.45, 0.7, 0.7], rtol=1e-6)


def test_coefficient_may_fall():
    schedule = kl.KLSchedule(start=1.0, end=0.5, constant=50, steps=50)
    np.testing.assert_allclose(schedule(75).coefficient, 0.75)


def test_coefficient_may_be_constant():
    for schedule in (kl.KLSchedule(start=0.3, end=0.3), kl.KLSchedule(start=0.1, end=0.3, steps=0)):
        values = jax.vmap(lambda step, schedule=schedule: schedule(step).coefficient)(
            jnp.arange(1, 2000, 100)
        )
        np.testing.assert_allclose(values, 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": -0.1}, "start=-0.1, end=1.0: a KL coefficient is at least 0"),
        ({"end": -1.0}, "a KL coefficient is at least 0"),
        ({"constant": -1}, "constant=-1, steps=1000: give numbers of steps"),
        ({"steps": -5}, "give numbers of steps"),
    ],
)
def test_bad_schedules_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        kl.KLSchedule(**fields)


def test_groups_are_balanced_while_the_coefficient_is_below_one():
    """By the KL per pixel and group of the scale. At one, and without balancing, all groups weigh alike."""
    divergence = jnp.asarray([[1.0, 3.0, 20.0], [2.0, -1.0, 12.0]])
    # The third group is alone on a scale with four times the pixels.
    per_size = (np.abs(divergence).mean(0) + 0.01) / np.array([1.0, 1.0, 8.0])
    balanced = np.asarray(divergence) @ (per_size / per_size.mean())
    plain = np.asarray(divergence).sum(1)
    for coefficient, balancing, expected in (
        (0.99, True, 0.99 * balanced),
        (1.0, True, plain),
        (0.5, False, 0.5 * plain),
        (0.0, True, 0.0 * plain),
    ):
        weighed = kl.weigh(divergence, kl.KLWeight(coefficient, balancing), (2, 1))
        np.testing.assert_allclose(weighed, expected, rtol=1e-5)


def test_groups_are_equal_parts_of_the_channels():
    values = jax.random.normal(jax.random.key(0), (3, 4, 5, 6))
    per_group = kl.sum_per_group(values, 2)
    np.testing.assert_allclose(per_group[:, 0], values[..., :3].sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(per_group.sum(1), values.sum((1, 2, 3)), rtol=1e-5)
    assert kl.sum_per_group(values[:, 0, 0], 3).shape == (3, 3)  # a vector latent has no axes but channels


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="6 channels cannot be divided into 4 groups"):
        kl.sum_per_group(jnp.zeros((1, 6)), 4)


def test_balance_is_proportional_to_the_divergence():
    """The coefficients have mean one and no gradient."""
    divergence = jnp.asarray([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]) - 0.01
    coefficients = kl.balance(divergence, jnp.ones(3))
    np.testing.assert_allclose(coefficients, np.array([1, 2, 4]) * 3 / 7, rtol=1e-5)
    gradient = jax.grad(lambda d: (kl.balance(d, jnp.ones(3)) * d).sum())(divergence)
    np.testing.assert_allclose(gradient, jnp.broadcast_to(coefficients, (2, 3)), rtol=1e-5)


def test_sizes_follow_the_pixels():
    np.testing.assert_allclose(kl.relative_sizes((2, 2)), [1, 1, 4, 4])
    np.testing.assert_allclose(kl.relative_sizes((1, 4)), [1, 1, 1, 1, 1])
