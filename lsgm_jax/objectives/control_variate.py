"""The control variate of the cross entropy: the error of the Gaussian prior, whose integral over time is known (O9).

Only what the network adds to the Gaussian prior is then estimated. For latents near a standard Gaussian the standard
errors of the NELBO fall by about nine, and the noise of the encoder's gradient with them.
"""

from typing import NamedTuple

import jax.numpy as jnp

from lsgm_jax.arrays import Latents, Scalar, State, Times, expand
from lsgm_jax.objectives.score_matching import squared_error
from lsgm_jax.objectives.time_densities import TimeDensity
from lsgm_jax.objectives.weightings import likelihood
from lsgm_jax.processes.linear import (
    Process,
    auxiliary_entropy,
    data_variance,
    gaussian_eps,
    kernel,
    log_snr,
    noise_entropy,
)


class Draw(NamedTuple):
    """Times and the unit noise that perturbs the latents there."""

    t: Times
    eps: State


def known_cross_entropy(
    density: TimeDensity, process: Process, z_0: Latents, draw: Draw, z_t: State, *, control_variate: bool
) -> Latents:
    """Computes the part of the cross entropy that needs no network, nats per dimension, [batch, ...].

    Args:
        density: r(t) from which the times were drawn.
        draw: t and eps of `z_t`.
        control_variate: the bracket of O9, which removes most of the noise of the other part; False for the constant
            of the published estimate.
    """
    t, eps = draw
    if not control_variate:
        start = jnp.asarray(density.t_min, t.dtype)
        return jnp.full_like(z_0, noise_entropy(process, start) - auxiliary_entropy(process))
    w_q = likelihood(process, t) / density.density(process, t)
    error = squared_error(lambda z_t, t: gaussian_eps(process, z_t, t), z_t, t, eps)
    return gaussian_bound(process, z_0, density.t_min) - expand(w_q, error) * error


def gaussian_bound(process: Process, z_0: Latents, t_min: float) -> Latents:
    """Computes the bound (O7) on -log p(z_0) for the exact score of a Gaussian prior in closed form (O9).

    In nats per dimension, [batch, ...].

    It differs from -log N(z_0; 0, V), V = `data_variance`, by two gaps that are positive on average: at t_min,
    where the likelihood of z_0 stands in for its posterior, and at t = 1, where the prior stands in for the
    marginal of z_1.
    """
    z2, v = z_0**2, data_variance(process)
    start, end = jnp.asarray(t_min, z_0.dtype), jnp.ones((), z_0.dtype)
    noise_to_signal = jnp.exp(-log_snr(process, start)) / v
    share = noise_to_signal / (1.0 + noise_to_signal)
    gap_at_start = jnp.log1p(noise_to_signal) + share * (1.0 - z2 / v)
    constant, slope = _gap_at_end(process, end)
    return 0.5 * (z2 / v + jnp.log(2.0 * jnp.pi * v) + gap_at_start + constant + slope * z2)


def _gap_at_end(process: Process, end: Scalar) -> tuple[Scalar, Scalar]:
    """Twice E[log N(z_1; 0, C) - log prior(z_1)] is constant + slope z_0^2, C = V a a^T + S (O9)."""
    signal, noise = kernel(process, end)
    covariance = noise @ noise.T
    marginal = covariance + data_variance(process) * jnp.outer(signal, signal)
    prior = jnp.diag(jnp.asarray(process.prior_variance(), signal.dtype))
    difference = jnp.linalg.inv(prior) - jnp.linalg.inv(marginal)
    log_ratio = jnp.linalg.slogdet(prior)[1] - jnp.linalg.slogdet(marginal)[1]
    return log_ratio + jnp.sum(difference * covariance), signal @ difference @ signal
