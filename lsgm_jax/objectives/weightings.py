"""Weightings lambda(t) of the squared error in noise space: LSGM Table 1, CLD section 3.1.

A loss is E_t[lambda(t) / r(t) * |eps - eps_hat|^2] with t drawn from a density r of `time_densities.py`. Any function
of (process, t) is a weighting. CLD's "reweighted v1" and "v2" are `reweighted` and `unweighted`: in terms of `sigma`
and g the weightings of both papers agree (O3). `unweighted`, `x_0` and `v` give the plain squared errors of the
parameterisations in `predictions.py` (O16).
"""

from collections.abc import Callable

import jax.numpy as jnp

from lsgm_jax.arrays import Times
from lsgm_jax.processes.linear import Process, flow_rate, gaussian_error, kernel, sigma, whitened_signal
from lsgm_jax.processes.predictions import require_one_coordinate

Weighting = Callable[[Process, Times], Times]


def likelihood(process: Process, t: Times) -> Times:
    """Returns w_ll = g^2 / (2 sigma^2), the weight of the bound on the log-likelihood (O3)."""
    return 0.5 * (process.diffusion(t) / sigma(process, t)) ** 2


def reweighted(process: Process, t: Times) -> Times:
    """Returns w_re = g^2 / 2, the likelihood weight without 1 / sigma^2."""
    return 0.5 * process.diffusion(t) ** 2


def unweighted(process: Process, t: Times) -> Times:
    """Returns w_un = 1, for the error of the noise, as in DDPM."""
    return jnp.ones_like(t)


def rescaled(process: Process, t: Times) -> Times:
    """Returns 1 / (2 e(t)), half the inverse of the error for Gaussian data, so that all times weigh alike (O3)."""
    return 0.5 / gaussian_error(process, t)


def x_0(process: Process, t: Times) -> Times:
    """Returns 1 / w_k^2, which is (sigma / alpha)^2 if k = 1, for the error of the data (O16)."""
    return whitened_signal(process, t)[..., -1] ** -2


def v(process: Process, t: Times) -> Times:
    """Returns (alpha + sigma^2 / alpha)^2, which is 1 / alpha^2 for VP, for the error of alpha eps - sigma x_0 (O16).

    Raises:
        ValueError: for a process of several coordinates.
    """
    require_one_coordinate(process)
    signal, noise = kernel(process, t)
    alpha, variance = signal[..., 0], noise[..., 0, 0] ** 2
    return (alpha + variance / alpha) ** 2


def velocity(process: Process, t: Times) -> Times:
    """Returns (g^2 / 2 sigma)^2, the weight of the error of the probability flow's velocity (O16)."""
    return flow_rate(process, t) ** 2
