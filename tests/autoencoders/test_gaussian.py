"""Closed forms of the posterior against numerical integration, and the soft clamp of its features."""

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.autoencoders.gaussian import Gaussian

Q = Gaussian(jnp.array([[0.3, -1.0], [2.0, 0.0]]), jnp.array([[-0.5, 0.2], [0.0, -1.0]]))


def integrate(integrand_of):
    grid = jnp.linspace(-15.0, 15.0, 30_001)
    log_q = jax.scipy.stats.norm.logpdf(grid, Q.mean[..., None], jnp.exp(Q.log_std)[..., None])
    return jnp.trapezoid(jnp.exp(log_q) * integrand_of(log_q, grid), grid, axis=-1).sum(-1)


def test_entropy(x64):
    np.testing.assert_allclose(Q.entropy().sum(-1), integrate(lambda log_q, _: -log_q), rtol=1e-6)


def test_cross_entropy_to_standard(x64):
    exact = integrate(lambda _, z: -jax.scipy.stats.norm.logpdf(z))
    np.testing.assert_allclose(Q.cross_entropy_to_standard().sum(-1), exact, rtol=1e-6)


def test_log_density(x64):
    z = jnp.array([[0.1, 2.0], [-3.0, 0.7]])
    expected = jax.scipy.stats.norm.logpdf(z, Q.mean, jnp.exp(Q.log_std))
    np.testing.assert_allclose(Q.log_density(z), expected, rtol=1e-6)


def test_samples_have_the_moments_of_the_gaussian():
    draws = jax.vmap(Q.sample)(jax.random.split(jax.random.key(0), 50_000))
    np.testing.assert_allclose(draws.mean(0), Q.mean, atol=0.03)
    np.testing.assert_allclose(draws.std(0), jnp.exp(Q.log_std), rtol=0.02)


def test_features_are_clamped_softly(x64):
    q = Gaussian.from_features(jnp.array([[100.0, 0.01, -100.0, 0.02]]))
    np.testing.assert_allclose(q.mean, [[5.0, 0.01]], rtol=1e-5)
    np.testing.assert_allclose(q.log_std, [[-5.0, 0.02]], rtol=1e-5)
    narrow = Gaussian.from_features(jnp.array([[100.0, 0.01, -100.0, 0.02]]), 2.0)
    np.testing.assert_allclose(narrow.mean, q.mean)
    np.testing.assert_allclose(narrow.log_std, [[-2.0, 0.02]], rtol=1e-4)
