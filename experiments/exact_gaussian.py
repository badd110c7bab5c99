"""A benchmark for solvers: Gaussian data, for which score, marginals and probability flow are known exactly.

The data are N(mean, variance), independently in every dimension, and the process is any linear SDE. With the exact
noise prediction `exact_eps`, every error of a sample is that of the solver:

    sampler = Sampler(method=METHODS["DDIM"](), steps=LogSNR(steps=20), t_min=1e-3)
    z_0 = solve_to_data(sampler, process, exact_eps(process), z_1, KeyedNoise(key)).z_0
    error = z_0 - exact_map(process, z_1, 1e-3)  # for a deterministic solver
"""

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import EpsNet, Latents, State, Times, as_state, coordinates, expand
from lsgm_jax.processes.linear import Number, Process, gaussian_eps, kernel
from lsgm_jax.processes.matrices import Matrix, Scalars, Vector
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, solve_to_data
from lsgm_jax.solvers.terms import KeyedNoise, Time

MEAN, VARIANCE = 1.5, 0.25


def moments(
    process: Process, t: Scalars, mean: Number = MEAN, variance: Number = VARIANCE
) -> tuple[Vector, Matrix]:
    """Returns mean [..., k] and covariance [..., k, k] of z_t, per latent dimension, for data N(mean, variance)."""
    signal, noise = kernel(process, t)
    cov = noise @ noise.mT + variance * signal[..., :, None] * signal[..., None, :]
    return mean * signal, cov


def exact_eps(process: Process, mean: Number = MEAN, variance: Number = VARIANCE) -> EpsNet:
    """Returns the exact noise prediction (z_t, t) -> eps_hat for data N(mean, variance) (D3).

    Args:
        mean: a scalar.
        variance: a scalar; 0 for data at a point.
    """

    def predict(z_t: State, t: Times) -> Latents:
        signal = kernel(process, t).signal
        centred = [z - expand(mean * signal[:, i], z) for i, z in enumerate(coordinates(z_t))]
        return gaussian_eps(process, as_state(centred), t, variance)

    return predict


def exact_map(
    process: Process, z_1: Latents, t: Time, mean: Number = MEAN, variance: Number = VARIANCE
) -> Latents:
    """Returns z_t of the probability flow from z_1, in closed form, for a process of one coordinate.

    The flow maps the quantiles of one Gaussian marginal to those of another.
    """
    (mean_1, cov_1), (mean_t, cov_t) = (
        moments(process, jnp.asarray(time, z_1.dtype), mean, variance) for time in (1.0, t)
    )
    return mean_t + jnp.sqrt(cov_t[0] / cov_1[0]) * (z_1 - mean_1)


def converged_flow(process: Process, z_1: State, t_min: float, eps_net: EpsNet | None = None) -> Latents:
    """Returns z_0 of the probability flow from z_1 to t_min, integrated by Dopri8 with a tolerance of 1e-10.

    No closed form is known for processes of two coordinates. Needs float64.

    Args:
        eps_net: the noise prediction; None for `exact_eps(process)`.
    """
    steps = Adaptive(rtol=1e-10, atol=1e-10, max_steps=100_000)
    sampler = Sampler(method=METHODS["Dopri8"](), steps=steps, t_min=t_min)
    eps_net = exact_eps(process) if eps_net is None else eps_net
    noise = KeyedNoise(jax.random.key(0))  # ODE solvers draw no noise
    return jax.jit(lambda z: solve_to_data(sampler, process, eps_net, z, noise).z_0)(z_1)
