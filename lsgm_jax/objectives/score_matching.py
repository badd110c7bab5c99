"""Score matching: the weighted squared error of a noise prediction.

Time is drawn by the caller, so what is returned has to be divided by the density of t. Sums are over the
dimensions of a sample, weights are those of `weights.py`, and the error concerns the last coordinate alone, since
noise enters there alone: for CLD the velocity (O12). A `Norm` says how large an error is.
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
from lsgm_jax.processes.linear import Process, move, perturb, sigma


def prediction_error(eps_net: EpsNet, z_t: State, t: Times, eps: State) -> Latents:
    """Eps - eps_hat of the last coordinate, for every dimension."""
    return coordinates(eps)[-1] - eps_net(z_t, t)


def squared_error(eps_net: EpsNet, z_t: State, t: Times, eps: State) -> Latents:
    """(eps - eps_hat)^2 of the last coordinate, for every dimension."""
    return prediction_error(eps_net, z_t, t, eps) ** 2


# Size of an error per sample, given it per dimension, and the weight [batch] that its square has.
Norm = Callable[[Latents, Times], PerSample]


def l2(error: Latents, weight: Times) -> PerSample:
    """Lambda |error|^2, summed over dimensions."""
    return weight * sum_per_sample(error**2)


def l1(error: Latents, weight: Times) -> PerSample:
    """sqrt(lambda) |error|, summed over dimensions: weights change the unit of an error as they do under `l2` (O16)."""
    return jnp.sqrt(weight) * sum_per_sample(jnp.abs(error))


def score_matching(
    weighting: Weighting, process: Process, eps_net: EpsNet, z_0: Latents, t: Times, eps: State
) -> PerSample:
    """lambda(t) |eps - eps_hat|^2 given the data alone.

    Denoising score matching for a process of one coordinate (LSGM eq. 6); hybrid score matching for CLD, whose
    initial velocity is averaged over analytically (CLD section 3.1).
    """
    error = squared_error(eps_net, perturb(process, z_0, t, eps), t, eps)
    return weighting(process, t) * sum_per_sample(error)


def phase_score_matching(
    weighting: Weighting, process: Process, start: Process, eps_net: EpsNet, z_0: State, t: Times, eps: State
) -> PerSample:
    """lambda(t) |eps - eps_hat|^2 given the whole state at time 0: plain denoising score matching for CLD (O12).

    Args:
        process, start, eps_net, z_0: as for `phase_prediction_error`.
    """
    return l2(phase_prediction_error(process, start, eps_net, z_0, t, eps), weighting(start, t))


def phase_prediction_error(
    process: Process, start: Process, eps_net: EpsNet, z_0: State, t: Times, eps: State
) -> Latents:
    """Eps - eps_hat given the whole state at time 0, in the noise of `start`.

    Args:
        process: whose noise `eps_net` predicts, the velocity at time 0 averaged over.
        start: `known_start(process)`. Its noise is smaller, and is what the prediction is compared with: the target is
            noisier for the same score.
        z_0: position and velocity.
    """

    def from_start(z_t: State, t: Times) -> Latents:
        eps_hat = eps_net(z_t, t)
        return expand(noise_ratio(start, process, t), eps_hat) * eps_hat

    return prediction_error(from_start, move(start, z_0, jnp.zeros_like(t), t, eps), t, eps)


def known_start(process: CLD) -> CLD:
    """The process given its initial velocity: `sigma`, weights and scores then are those of plain score matching."""
    return dataclasses.replace(process, v0_var_scale=0.0)


def noise_ratio(process: Process, other: Process, t: Times) -> Times:
    """What turns a prediction of the noise of `other` into one of the noise of `process`, for the same score (D2)."""
    return sigma(process, t) / sigma(other, t)
