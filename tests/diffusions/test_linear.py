"""Theorems of the linear SDE: every process obeys its own moment equations, exactly and in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.diffusions import linear
from lsgm_jax.diffusions.vp import VP, GeometricVP

PROCESSES = {
    "vp": VP(),
    "vp_other_betas": VP(beta_min=0.5, beta_max=7.0),
    "vp_initial_variance": VP(sigma2_0=0.01),
    "geometric": GeometricVP(),
    "geometric_wide": GeometricVP(sigma2_min=1e-4, sigma2_max=0.99),
}


@pytest.fixture(params=PROCESSES, ids=str)
def process(request):
    return PROCESSES[request.param]


def times(low=1e-5):
    return jnp.concatenate([jnp.geomspace(low, 0.1, 30), jnp.linspace(0.11, 1.0, 30)])


def derivative(function, t):
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def test_mean_obeys_the_drift(x64, process):
    t = times()
    np.testing.assert_allclose(derivative(process.alpha, t), process.drift(t) * process.alpha(t), rtol=1e-10)


def test_variance_obeys_the_lyapunov_equation(x64, process):
    t = times()
    slope = derivative(lambda t: linear.variance(process, t), t)
    expected = 2 * process.drift(t) * linear.variance(process, t) + process.diffusion(t) ** 2
    np.testing.assert_allclose(slope, expected, rtol=1e-9)


def test_data_is_untouched_at_time_zero(x64, process):
    zero = jnp.zeros(())
    np.testing.assert_allclose(process.alpha(zero), 1.0, rtol=1e-14)
    initial = getattr(process, "sigma2_0", None)
    initial = process.sigma2_min if initial is None else initial
    np.testing.assert_allclose(linear.variance(process, zero), initial, rtol=1e-12)


def test_variance_is_preserved(x64, process):
    """A latent of variance one keeps it, up to the variance added at time 0."""
    t = times()
    start = 1.0 - linear.variance(process, jnp.zeros(()))
    np.testing.assert_allclose(process.alpha(t) ** 2 * start + linear.variance(process, t), 1.0, rtol=1e-12)


def test_time_of_log_variance_inverts(x64, process):
    t = times()
    np.testing.assert_allclose(process.time_of_log_variance(process.log_variance(t)), t, rtol=1e-9)


@pytest.mark.parametrize("name", ["drift", "diffusion", "alpha", "log_variance"])
def test_float32_is_exact_to_rounding(process, name):
    """No epsilon, no float64: relative error of 1e-6 from t = 1e-5 to 1, where 1 - exp(-B) would lose all digits."""
    t = np.asarray(times(), np.float32)
    single = np.asarray(getattr(process, name)(jnp.asarray(t)))
    with jax.enable_x64(True):
        exact = np.asarray(getattr(process, name)(jnp.asarray(t, jnp.float64)))
    error = np.abs(single - exact) / np.abs(exact)
    if (
        name == "log_variance"
    ):  # a logarithm near 0 is judged by the variance it stands for, and by its own digits
        error = np.minimum(error, np.abs(np.expm1(single.astype(np.float64) - exact)))
    assert error.max() < 1e-6


def test_perturbation_has_the_transition_moments(x64, process):
    key = jax.random.key(0)
    z_0 = jnp.full((200_000, 1), 1.5)
    t = jnp.full(len(z_0), 0.3)
    z_t = linear.perturb(process, z_0, t, jax.random.normal(key, z_0.shape))
    np.testing.assert_allclose(z_t.mean(), process.alpha(t[0]) * 1.5, atol=5 / np.sqrt(len(z_0)))
    np.testing.assert_allclose(z_t.var(), linear.variance(process, t[0]), rtol=0.02)


def test_normal_eps_is_the_score_of_standard_normal_data(x64, process):
    """For z_0 ~ N(0, 1) the marginal is N(0, alpha^2 + sigma^2); its score comes from automatic differentiation."""
    t = jnp.array([0.01, 0.2, 0.9])
    z_t = jnp.array([[0.3], [-1.2], [2.0]])

    def log_marginal(z, t):
        return jax.scipy.stats.norm.logpdf(
            z, scale=jnp.sqrt(process.alpha(t) ** 2 + linear.variance(process, t))
        ).sum()

    exact = jax.vmap(jax.grad(log_marginal))(z_t, t)
    np.testing.assert_allclose(
        linear.score_of_eps(process, linear.normal_eps(process, z_t, t), t), exact, rtol=1e-12
    )


def test_reverse_sde_and_ode_differ_by_half_the_score(x64, process):
    t, z = jnp.array([0.4]), jnp.array([[0.7, -0.2]])
    eps_hat = jnp.array([[0.1, 0.5]])
    forward = linear.expand(process.drift(t), z) * z
    score_term = process.diffusion(t)[:, None] ** 2 * linear.score_of_eps(process, eps_hat, t)
    np.testing.assert_allclose(forward - linear.reverse_drift(process, z, eps_hat, t), score_term, rtol=1e-12)
    np.testing.assert_allclose(
        forward - linear.probability_flow(process, z, eps_hat, t), score_term / 2, rtol=1e-12
    )


def test_noise_entropy_is_the_entropy_of_the_kernel(x64, process):
    t = jnp.array(0.2)
    draws = linear.sigma(process, t) * jax.random.normal(jax.random.key(1), (100_000,))
    log_density = jax.scipy.stats.norm.logpdf(draws, scale=linear.sigma(process, t))
    np.testing.assert_allclose(linear.noise_entropy(process, t), -log_density.mean(), atol=0.01)


def test_prior_is_what_is_sampled(x64, process):
    z_1 = linear.sample_prior(process, jax.random.key(2), (50_000, 2))
    np.testing.assert_allclose(jnp.cov(z_1.T), jnp.eye(2), atol=0.03)
    exact = jax.scipy.stats.norm.logpdf(z_1).sum(-1)
    np.testing.assert_allclose(linear.prior_log_prob(process, z_1), exact, rtol=1e-12)
