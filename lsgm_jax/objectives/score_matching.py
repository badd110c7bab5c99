"""Score matching: the weighted squared error of a noise prediction.

The caller draws the times, and divides the result by the density of t. Losses are summed over the dimensions of a
sample, weights are those of `weightings.py`, and the error is that of the last coordinate, where noise enters: for CLD
the velocity (O12). A `Norm` is the size of an error.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from lsgm_jax.arrays import (
    EpsNet,
    Latents,
    PerSample,
    State,
    Times,
    coordinates,
    expand,
    sum_per_sample,
)
from lsgm_jax.objectives.weightings import Weighting
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.linear import Process, perturb, perturb_state, sigma


def prediction_error(eps_net: EpsNet, z_t: State, t: Times, eps: State) -> Latents:
    """Returns eps - eps_hat of the last coordinate, for every dimension."""
    return coordinates(eps)[-1] - eps_net(z_t, t)


def squared_error(eps_net: EpsNet, z_t: State, t: Times, eps: State) -> Latents:
    """Returns (eps - eps_hat)^2 of the last coordinate, for every dimension."""
    return prediction_error(eps_net, z_t, t, eps) ** 2


# (error per dimension, weight [batch] of its square) -> size of the error of each sample.
Norm = Callable[[Latents, Times], PerSample]


def l2(error: Latents, weight: Times) -> PerSample:
    """Returns lambda |error|^2, summed over dimensions."""
    return weight * sum_per_sample(error**2)


def l1(error: Latents, weight: Times) -> PerSample:
    """Returns sqrt(lambda) |error|, summed over dimensions; weights scale the error as under `l2` (O16)."""
    return jnp.sqrt(weight) * sum_per_sample(jnp.abs(error))


def score_matching(
    weighting: Weighting, process: Process, eps_net: EpsNet, z_0: Latents, t: Times, eps: State
) -> PerSample:
    """Returns lambda(t) |eps - eps_hat|^2 given the data alone, summed over dimensions.

    This is denoising score matching for a process of one coordinate (LSGM eq. 6), and hybrid score matching for CLD,
    which averages over the initial velocity analytically (CLD section 3.1).

    Args:
        t: times, drawn by the caller.
        eps: unit noise of the state.
    """
    error = squared_error(eps_net, perturb(process, z_0, t, eps), t, eps)
    return weighting(process, t) * sum_per_sample(error)


def phase_score_matching(
    weighting: Weighting, process: Process, start: Process, eps_net: EpsNet, z_0: State, t: Times, eps: State
) -> PerSample:
    """Returns lambda(t) |eps - eps_hat|^2 given position and velocity at time 0: plain DSM for CLD (O12).

    Args:
        process, start, eps_net, z_0: as for `phase_prediction_error`.
    """
    return l2(phase_prediction_error(process, start, eps_net, z_0, t, eps), weighting(start, t))


def phase_prediction_error(
    process: Process, start: Process, eps_net: EpsNet, z_0: State, t: Times, eps: State
) -> Latents:
    """Returns eps - eps_hat given position and velocity at time 0, in units of the noise of `start`.

    Args:
        process: the process whose noise `eps_net` predicts, averaged over the initial velocity.
        start: `known_start(process)`, whose noise is smaller. It perturbs z_0, and its noise is the target.
        z_0: position and velocity.
    """

    def from_start(z_t: State, t: Times) -> Latents:
        eps_hat = eps_net(z_t, t)
        return expand(noise_ratio(start, process, t), eps_hat) * eps_hat

    return prediction_error(from_start, perturb_state(start, z_0, t, eps), t, eps)


def known_start(process: CLD) -> CLD:
    """Returns the process given its initial velocity, with the `sigma`, weights and scores of plain score matching."""
    return dataclasses.replace(process, v0_var_scale=0.0)


def noise_ratio(process: Process, other: Process, t: Times) -> Times:
    """Returns the factor that converts predicted noise of `other` to that of `process`, for equal scores (D2)."""
    return sigma(process, t) / sigma(other, t)
