"""LDM's noise schedules, what follows from them, and the times that its DDIM visits.

Timestep i of the original is the time (i + 1) / T. Its buffers are compared with our process's kernel and with the
intervals from each timestep to the one before, that of the first being the data.
"""

import re

import jax.numpy as jnp
import numpy as np

from lsgm_jax.processes import linear
from lsgm_jax.solvers.ddim import _stochastic
from lsgm_jax.solvers.grids import Times
from lsgm_jax.solvers.interval import between
from tests.parity.ldm_samplers import discrete_process, timesteps_of


def timestep_times(process, timesteps):
    return (jnp.asarray(timesteps) + 1.0) / len(process.betas)


def chain(process):
    """The intervals of all transitions, from timestep i to the one before it."""
    times = timestep_times(process, np.arange(-1, len(process.betas)))
    return between(process, times[:-1], times[1:])


def posterior(interval, v=0.0):
    """Of the state at s given data and the state at t: factors of these in the mean, the variance, and its log.

    `v` mixes the variance with that of the transition, the upper bound; published models have 0. DDIM's step with all
    noise draws from it, where the first transition has none: the original takes 1e-20 for its log.
    """
    fall, noise = _stochastic(interval, 1.0)
    of_data = fall * interval.alpha_t / (interval.sigma_t * interval.mean)
    of_state = (1.0 - fall / interval.sigma_t) / interval.mean
    variance = (1.0 - v) * noise**2 + v * interval.variance
    return of_data, of_state, variance, jnp.log(jnp.maximum(variance, 1e-20))


def bound_weights(interval):
    """Weights of the squared error of the noise in the bound of the whole chain: (SNR(s) / SNR(t) - 1) / 2 (O17).

    Quirk: that of the first transition, which is infinite, is replaced by that of the second.
    """
    weights = 0.5 * jnp.expm1(2.0 * interval.log_snr_gain())
    return weights.at[0].set(weights[1])


def misplaced_bound_weights(interval):
    """Quirk: for predicted data sqrt(alpha^2) / 2 / (2 - alpha^2), most likely for a denominator of 2 (1 - alpha^2)."""
    weights = 0.5 * interval.alpha_t / (1.0 + interval.sigma_t**2)
    return weights.at[0].set(weights[1])


def buffers(process, h):
    """What the original derives from a schedule, by its names."""
    interval = chain(process)
    alpha, sigma = interval.alpha_t, interval.sigma_t
    of_data, of_state, variance, log_variance = posterior(interval, h.get("v_posterior", 0.0))
    return {
        "betas": interval.variance,
        "alphas_cumprod": alpha**2,
        "alphas_cumprod_prev": interval.alpha_s**2,
        "sqrt_alphas_cumprod": alpha,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "log_one_minus_alphas_cumprod": 2.0 * jnp.log(sigma),
        "sqrt_recip_alphas_cumprod": 1.0 / alpha,
        "sqrt_recipm1_alphas_cumprod": sigma / alpha,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": log_variance,
        "posterior_mean_coef1": of_data,
        "posterior_mean_coef2": of_state,
    }


def rounding(sigma):
    """The share that is lost at most in what was computed from float32 values of alpha^2, which are near one."""
    return 1e-6 + 5e-8 / float(jnp.min(sigma)) ** 2


def check_buffers(fixture, name, h):
    """Computed in float64 and stored as float32, but for what is computed from stored ones."""
    process = discrete_process(h)
    fixture.check(f"{name}/betas_float64", process.betas, rtol=1e-11)
    values, interval = buffers(process, h), chain(process)
    for key, value in values.items():
        fixture.check(f"{name}/{key}", value, rtol=3e-7, atol=1e-12, single_atol=SINGLE.get(key, 1e-7))
    later = rounding(interval.sigma_t)
    weights = bound_weights(interval)
    if "v_posterior" in h:  # the mixed variance in place of the posterior's
        weights *= posterior(interval)[2] / values["posterior_variance"]
        weights = weights.at[0].set(weights[1])
    fixture.check(f"{name}/lvlb_weights", weights, rtol=later, single_atol=later)
    fixture.check(f"{name}/lvlb_weights_x0", misplaced_bound_weights(interval), rtol=3e-7)
    if f"out/{name}/ddim_sigmas_all_steps_eta1" in fixture.arrays:
        drawn = _stochastic(interval, 1.0)[1]
        fixture.check(f"{name}/ddim_sigmas_all_steps_eta1", drawn, rtol=later, atol=1e-5, single_atol=1e-5)


# In float32: a difference of numbers near each other, and logs near zero.
SINGLE = {
    "posterior_mean_coef2": 1e-5,
    "log_one_minus_alphas_cumprod": 1e-6,
    "posterior_log_variance_clipped": 1e-6,
}


def check_sub_schedule(fixture, name, h, spacing, steps):
    """DDIM's times, and the noise that it draws at each: by our grid and our DDIM.

    Quirk: the step from the earliest time ends at timestep 0, not at the data. Quirk: with many quadratic steps times
    repeat; a step of no length is skipped by ours, and has no noise.
    """
    process = discrete_process(h)
    total, prefix = len(process.betas), f"{name}/ddim_{spacing}_S{steps}"
    timesteps = timesteps_of(steps, total, spacing)
    fixture.check(f"{prefix}/timesteps", timesteps[::-1])
    visited = [*timesteps, 0]
    lasting = [index for index in range(len(timesteps)) if visited[index] > visited[index + 1]]
    values = tuple((int(visited[index]) + 1) / total for index in [*lasting, len(timesteps)])
    times = Times(values=values).times(process, 0.0)
    interval = between(process, times[1:], times[:-1])
    spread = np.searchsorted(-np.asarray(visited)[lasting], -timesteps)  # from all steps to those that last
    alphas = (interval.alpha_t**2)[spread][::-1]
    fixture.check(f"{prefix}/alphas", alphas, rtol=3e-7, single_atol=1e-7)
    sigma = interval.sigma_t[spread][::-1]
    fixture.check(f"{prefix}/sqrt_one_minus_alphas", sigma, rtol=rounding(sigma), single_atol=1e-6)
    before = timestep_times(process, np.asarray(visited[1:]))[::-1]
    signal = linear.kernel(process, before).signal[:, 0]
    fixture.check(f"{prefix}/alphas_prev", signal**2, rtol=3e-7, single_atol=1e-7)
    has_length = np.isin(np.arange(len(timesteps)), lasting)
    for eta in etas(fixture, prefix):
        drawn = np.where(has_length, np.asarray(_stochastic(interval, eta)[1])[spread], 0.0)
        # The original subtracts float32 numbers near each other.
        fixture.check(f"{prefix}/sigmas_eta{eta:g}", drawn[::-1], rtol=1e-5, atol=1e-5, single_atol=1e-5)


def etas(fixture, prefix):
    names = (re.fullmatch(rf"{re.escape(prefix)}/sigmas_eta([\d.]+)", name) for name in fixture.outputs())
    return sorted(float(found.group(1)) for found in names if found)


def check_schedules(fixture):
    for name, h in fixture.spec["hyperparameters"].items():
        check_buffers(fixture, name, h)
        for spacing in ("uniform", "quad"):
            for steps in fixture.spec["ddim_step_counts"]:
                if f"out/{name}/ddim_{spacing}_S{steps}/timesteps" in fixture.arrays:
                    check_sub_schedule(fixture, name, h, spacing, steps)


CHECKS = {"ldm_schedules": check_schedules}
