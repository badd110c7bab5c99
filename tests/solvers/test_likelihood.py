"""Log densities along the probability flow, against known densities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.exact_gaussian import MEAN, VARIANCE, exact_eps, moments
from lsgm_jax.arrays import coordinates, expand
from lsgm_jax.processes import linear
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.vp import VP, GeometricVP
from lsgm_jax.solvers.grids import Quadratic
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.likelihood import Divergence, log_density
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler

TIGHT = Sampler(steps=Adaptive(rtol=1e-8, atol=1e-8), t_min=1e-6)
EXACT = Divergence(name="exact")


@pytest.mark.parametrize("process", [VP(), GeometricVP()], ids=["vp", "geometric"])
def test_the_density_of_gaussian_data_is_exact(x64, process):
    """One dimension: a Rademacher probe gives the exact divergence, so the estimate is the Gaussian's log-density."""
    z_0 = jnp.array([[1.5], [0.2], [3.0]])
    density = jax.jit(lambda z: log_density(TIGHT, process, exact_eps(process), jax.random.key(3), z))(z_0)
    exact = jax.scipy.stats.norm.logpdf(z_0[:, 0], MEAN, np.sqrt(VARIANCE))
    # N(0, 1) stands in for the marginal of z_1, whose mean and variance are off by alpha(1) and its square.
    mean, cov = moments(process, jnp.ones(()))
    z_1 = mean + jnp.sqrt(cov[0] / VARIANCE) * (z_0[:, 0] - MEAN)
    exact += jax.scipy.stats.norm.logpdf(z_1) - jax.scipy.stats.norm.logpdf(z_1, mean, jnp.sqrt(cov[0]))
    start_variance = linear.sigma(process, jnp.asarray(1e-6)) ** 2
    np.testing.assert_allclose(density.log_prob, exact, atol=1e-4 + 20 * start_variance)
    assert density.success.all()


# A mixture of two Gaussian distributions in the plane

WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[1.0, -0.5], [-0.6, 0.4]])
SCALES = np.array([0.5, 0.3])


def mixture_log_prob(process, t, z):
    """Log density of z_t, all coordinates, [batch]; at `t` None of the data."""
    logs = []
    for weight, mean, scale in zip(WEIGHTS, MEANS, SCALES, strict=True):
        if t is None:
            signal, cov = jnp.ones(1), jnp.full((1, 1), scale**2)
        else:
            signal, noise = linear.kernel(process, t)
            cov = noise @ noise.T + scale**2 * jnp.outer(signal, signal)
        stacked = jnp.stack(coordinates(z), axis=-1)  # [batch, 2, k]
        parts = jax.scipy.stats.multivariate_normal.logpdf(
            stacked - mean[:, None] * signal, jnp.zeros(len(signal)), cov
        )
        logs.append(jnp.log(weight) + parts.sum(axis=-1))
    return jax.scipy.special.logsumexp(jnp.stack(logs), axis=0)


def mixture_eps(process):
    """The exact prediction, by differentiating the density of z_t."""

    def predict(z_t, t):
        gradient = jax.grad(lambda z: mixture_log_prob(process, t[0], z).sum())(z_t)
        score = coordinates(gradient)[-1]
        return -expand(linear.sigma(process, t), score) * score

    return predict


# Long processes, so that replacing the marginal at t = 1 by the prior costs less than 1e-4.
LONG = {"vp": VP(beta_max=40.0), "cld": CLD(beta_min=8.0, beta_max=8.0)}
POINTS = np.array([[1.0, -0.5], [-0.6, 0.4], [0.2, 0.1], [-1.5, 1.0]])


@pytest.mark.parametrize("name", LONG)
def test_the_density_of_a_mixture_is_exact(x64, name):
    """To 1e-4 nats with the exact divergence; CLD's random velocity cancels for the exact score."""
    process = LONG[name]
    sampler = dataclasses.replace(TIGHT, t_min=1e-7)
    run = jax.jit(lambda z: log_density(sampler, process, mixture_eps(process), jax.random.key(1), z, EXACT))
    density = run(jnp.asarray(POINTS))
    np.testing.assert_allclose(
        density.log_prob, mixture_log_prob(process, None, jnp.asarray(POINTS)), atol=1e-4
    )
    assert density.products == density.nfe * POINTS.shape[1]


def test_one_probe_is_exact_if_dimensions_are_independent(x64):
    """For CLD and Gaussian data the flow couples position and velocity, but not dimensions."""
    process, key, point = CLD(), jax.random.key(1), jnp.asarray(POINTS)
    net = lambda z_t, t: linear.gaussian_eps(process, z_t, t)
    sampler = Sampler(method=METHODS["Heun"](), steps=Quadratic(steps=20), t_min=1e-3)
    one, exact = (log_density(sampler, process, net, key, point, way) for way in (Divergence(), EXACT))
    np.testing.assert_allclose(one.log_prob, exact.log_prob, rtol=1e-12)


@pytest.mark.parametrize("name", ["rademacher", "gaussian"])
@pytest.mark.parametrize("process", ["vp", pytest.param("cld", marks=pytest.mark.slow)])
def test_hutchinsons_estimator_is_unbiased(x64, process, name):
    """Within three standard errors over 400 draws of the probes, with the same velocities for both divergences."""
    chosen = LONG[process]
    sampler = Sampler(method=METHODS["Heun"](), steps=Quadratic(steps=60), t_min=1e-4)
    point = jnp.tile(POINTS[2], (400, 1))

    def draws(divergence):
        density = lambda z_0: log_density(
            sampler, chosen, mixture_eps(chosen), jax.random.key(2), z_0, divergence
        )
        return np.asarray(jax.jit(density)(point).log_prob)

    error = draws(Divergence(name=name)) - draws(EXACT)
    assert error.std() > 1e-3
    assert abs(error.mean()) < 3.0 * error.std() / np.sqrt(400)


def test_the_variance_is_inverse_to_the_number_of_probes(x64):
    """And equal keys give equal estimates."""
    process = VP()
    coupling = jnp.array([[0.2, 0.5], [0.5, 0.2]])
    net = lambda z_t, t: linear.gaussian_eps(process, z_t, t) + 0.3 * jnp.tanh(z_t @ coupling)
    point = jnp.tile(jnp.array([0.5, -1.0]), (300, 1))
    sampler = Sampler(method=METHODS["Heun"](), steps=Quadratic(steps=20), t_min=1e-3)

    def draws(probes):
        divergence = Divergence(probes=probes)
        return jax.jit(lambda key: log_density(sampler, process, net, key, point, divergence).log_prob)(
            jax.random.key(0)
        )

    one, sixteen = draws(1), draws(16)
    np.testing.assert_array_equal(one, draws(1))
    np.testing.assert_allclose(one.std() / sixteen.std(), 4.0, rtol=0.25)


def test_a_likelihood_needs_an_ode_solver():
    sampler = Sampler(method=METHODS["EulerMaruyama"](), steps=Quadratic(steps=5))
    with pytest.raises(ValueError, match=r"'EulerMaruyama' does not integrate ODEs: use .*'Tsit5'"):
        log_density(sampler, VP(), exact_eps(VP()), jax.random.key(0), jnp.asarray(POINTS))
