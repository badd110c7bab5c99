"""The KL term: schedule, groups and balance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.objectives import kl


def test_coefficient_waits_then_climbs_then_stays():
    steps = jnp.asarray([0, 9, 10, 35, 60, 1000])
    schedule = kl.KLSchedule(start=0.2, end=0.7, constant=10, steps=50)
    values = jax.vmap(lambda step: schedule(step).coefficient)(steps)
    np.testing.assert_allclose(values, [0.2, 0.2, 0.2, 0.45, 0.7, 0.7], rtol=1e-6)


def test_coefficient_may_fall():
    schedule = kl.KLSchedule(start=1.0, end=0.5, constant=50, steps=50)
    np.testing.assert_allclose(schedule(75).coefficient, 0.75)


def test_groups_are_shares_of_the_channels():
    values = jax.random.normal(jax.random.key(0), (3, 4, 5, 6))
    per_group = kl.sum_per_group(values, 2)
    np.testing.assert_allclose(per_group[:, 0], values[..., :3].sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(per_group.sum(1), values.sum((1, 2, 3)), rtol=1e-5)
    assert kl.sum_per_group(values[:, 0, 0], 3).shape == (3, 3)  # a vector latent has channels alone


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="6 channels cannot be divided into 4 groups"):
        kl.sum_per_group(jnp.zeros((1, 6)), 4)


def test_balance_weighs_a_group_by_what_it_holds():
    """Twice the divergence, twice the coefficient; the mean stays one, and no gradient flows through it."""
    divergence = jnp.asarray([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]) - 0.01
    coefficients = kl.balance(divergence, jnp.ones(3))
    np.testing.assert_allclose(coefficients, np.array([1, 2, 4]) * 3 / 7, rtol=1e-5)
    gradient = jax.grad(lambda d: (kl.balance(d, jnp.ones(3)) * d).sum())(divergence)
    np.testing.assert_allclose(gradient, jnp.broadcast_to(coefficients, (2, 3)), rtol=1e-5)


def test_sizes_follow_the_pixels():
    np.testing.assert_allclose(kl.relative_sizes((2, 2)), [1, 1, 4, 4])
    np.testing.assert_allclose(kl.relative_sizes((1, 4)), [1, 1, 1, 1, 1])
