"""Gaussian data, for which score, marginals and the map of the probability flow are known."""

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import as_state, coordinates, expand
from lsgm_jax.processes import linear
from lsgm_jax.processes.matrices import add_noise, solve_lower_state
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, solve_to_data
from lsgm_jax.solvers.terms import KeyedNoise

MEAN, VARIANCE = 1.5, 0.25


def moments(process, t):
    """Mean and covariance of z_t for data N(MEAN, VARIANCE)."""
    signal, noise = linear.kernel(process, t)
    cov = noise @ noise.mT + VARIANCE * signal[..., :, None] * signal[..., None, :]
    return MEAN * signal, cov


def exact_eps(process, mean=MEAN, variance=VARIANCE):
    """Noise prediction of N(mean, variance), as `gaussian_eps` has it for a mean of zero (D3). Variance 0: a point."""

    def predict(z_t, t):
        signal, noise = linear.kernel(process, t)
        marginal = add_noise(noise, signal * jnp.sqrt(variance))
        values = enumerate(coordinates(z_t))
        centred = as_state([z - expand(mean * signal[:, i], z) for i, z in values])
        last = solve_lower_state(marginal, centred)[-1]
        return expand(noise[:, -1, -1] / marginal[:, -1, -1], last) * last

    return predict


def exact_map(process, z_1, t_min):
    """The probability flow carries quantiles to quantiles of the Gaussian marginals."""
    (mean_1, cov_1), (mean_0, cov_0) = (moments(process, jnp.asarray(t, z_1.dtype)) for t in (1.0, t_min))
    return mean_0 + jnp.sqrt(cov_0[0] / cov_1[0]) * (z_1 - mean_1)


def flow(process, z_1, t_min, eps_net=None):
    """The probability flow from any z_1, converged: for two coordinates no formula is known. Needs float64."""
    steps = Adaptive(rtol=1e-10, atol=1e-10, max_steps=100_000)
    sampler = Sampler(method=METHODS["Dopri8"](), steps=steps, t_min=t_min)
    eps_net, noise = (
        eps_net or exact_eps(process),
        KeyedNoise(jax.random.key(0)),
    )  # no solver of ODEs draws any
    return jax.jit(lambda z: solve_to_data(sampler, process, eps_net, z, noise).z_0)(z_1)
