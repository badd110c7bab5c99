"""DDPM's chain as a process in continuous time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.processes import linear
from lsgm_jax.processes.discrete import (
    DiscreteVP,
    betas_of_alphas_cumprod,
    discrete_vp,
    root_linear_betas,
)

STEPS = 1000
BETAS = np.asarray(root_linear_betas(STEPS, 0.0015, 0.0195))
PROCESS = DiscreteVP(betas=tuple(BETAS.tolist()))


def test_transitions_between_nodes_are_those_of_the_chain(precision):
    """Also the shortest ones in float32, and for times with rounding errors."""
    t = jnp.arange(1, STEPS + 1) / STEPS
    t = 1.0 - (1.0 - t)  # as solvers compute times
    mean, noise = PROCESS.transition(jnp.concatenate([jnp.zeros(1), t[:-1]]), t)
    np.testing.assert_allclose(noise[:, 0, 0] ** 2, BETAS, rtol=1e-6)
    np.testing.assert_allclose(mean[:, 0, 0], np.sqrt(1.0 - BETAS), rtol=1e-6)
    left = np.cumprod(1.0 - BETAS)
    signal, noise = linear.kernel(PROCESS, t)
    np.testing.assert_allclose(signal[:, 0], np.sqrt(left), rtol=1e-5)
    np.testing.assert_allclose(noise[:, 0, 0], np.sqrt(1.0 - left), rtol=1e-5)


def test_the_rate_is_the_slope_of_its_integral(x64):
    t = jnp.asarray(np.random.default_rng(0).uniform(0.001, 1.0, 20))
    slope = jax.vmap(jax.grad(lambda t: PROCESS.int_beta(jnp.zeros(()), t)))(t)
    np.testing.assert_allclose(PROCESS.beta(t), slope, rtol=1e-9)
    np.testing.assert_allclose(
        PROCESS.int_beta(0.4 * t, t), PROCESS.int_beta(0 * t, t) - PROCESS.int_beta(0 * t, 0.4 * t), rtol=1e-9
    )
    node = jnp.asarray([0.25, 0.5])
    np.testing.assert_allclose(PROCESS.beta(node), -STEPS * np.log1p(-BETAS[[249, 499]]), rtol=1e-12)


def test_betas_from_alphas_cumprod():
    np.testing.assert_allclose(betas_of_alphas_cumprod(np.cumprod(1.0 - BETAS)), BETAS, rtol=1e-9)
    assert BETAS[[0, -1]] == pytest.approx([0.0015, 0.0195])
    np.testing.assert_allclose(np.diff(np.sqrt(BETAS), n=2), 0.0, atol=1e-15)


def test_a_process_is_static_and_can_be_an_argument_of_jit():
    assert not jax.tree.leaves(PROCESS)
    assert jax.jit(lambda process, t: process.beta(t))(PROCESS, jnp.ones(())) == PROCESS.beta(jnp.ones(()))


@pytest.mark.parametrize("betas", [(), (0.1, 1.0), (0.1, 0.0)])
def test_bad_betas_are_refused(betas):
    with pytest.raises(ValueError, match="give at least one, each between 0 and 1"):
        DiscreteVP(betas=betas)


def test_each_schedule_is_linear_in_the_right_power_of_beta():
    """Despite their names: linear are the square root, the variance itself, and its square."""
    for schedule, power in (("linear", 0.5), ("sqrt_linear", 1.0), ("sqrt", 2.0)):
        betas = np.asarray(discrete_vp(schedule=schedule, steps=100, first=1e-4, last=0.04).betas)
        np.testing.assert_allclose(np.diff(betas**power, n=2), 0.0, atol=1e-15)
        ends = (0.01, 0.2) if schedule == "sqrt" else (1e-4, 0.04)
        np.testing.assert_allclose(betas[[0, -1]], ends, rtol=1e-12)


def test_the_cosine_schedule_keeps_the_cosine(x64):
    """alpha^2 is the square of a cosine except after the last transition, whose beta is clipped."""
    process, t = discrete_vp(schedule="cosine", steps=500, offset=0.01), jnp.arange(1, 500) / 500
    signal = linear.kernel(process, t).signal[:, 0]
    np.testing.assert_allclose(
        signal, np.cos((t + 0.01) / 1.01 * np.pi / 2) / np.cos(0.01 / 1.01 * np.pi / 2), rtol=1e-9
    )
    assert process.betas[-1] == 0.999
    assert linear.kernel(process, jnp.ones(())).signal[0] > 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(schedule="cosin"), "schedule='cosin' is none of linear, cosine, sqrt_linear, sqrt"),
        (dict(steps=0), "steps=0: give a positive number of steps"),
        (dict(first=0.02), r"first=0\.02, last=0\.0195: variances grow"),
        (dict(schedule="sqrt", last=1.0), r"last=1\.0: variances grow"),
        (dict(schedule="cosine", offset=-0.1), r"offset=-0\.1"),
    ],
)
def test_bad_schedules_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        discrete_vp(**settings)
    assert "\n" not in str(error.value)
