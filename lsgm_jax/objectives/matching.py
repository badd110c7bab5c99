"""Score matching: the weighted squared error of a noise prediction.

Time is drawn by the caller, so what is returned has to be divided by the density of t. Sums are over the
dimensions of a sample, weights are those of `weights.py`, and the error concerns the last coordinate alone, since
noise enters there alone: for CLD the velocity (O12).
"""

import dataclasses

import jax.numpy as jnp

from lsgm_jax.arrays import EpsNet, Latents, PerSample, Phase, State, Times, coordinates, sum_per_sample
from lsgm_jax.diffusions.cld import CLD
from lsgm_jax.diffusions.linear import Process, move, perturb
from lsgm_jax.objectives.weights import Weighting


def squared_error(eps_net: EpsNet, z_t: State, t: Times, eps: State) -> Latents:
    """(eps - eps_hat)^2 of the last coordinate, for every dimension."""
    return (coordinates(eps)[-1] - eps_net(z_t, t)) ** 2


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
    weighting: Weighting, process: CLD, eps_net: EpsNet, z_0: Phase, t: Times, eps: Phase
) -> PerSample:
    """Plain denoising score matching for CLD: position and velocity at time 0 are both given.

    `eps_net` predicts the noise of the kernel that starts there, that of `known_start(process)`. Its variance is
    smaller than the hybrid kernel's, so the target is noisier for the same score.
    """
    start = known_start(process)
    z_t = move(start, z_0, jnp.zeros_like(t), t, eps)
    return weighting(start, t) * sum_per_sample(squared_error(eps_net, z_t, t, eps))


def known_start(process: CLD) -> CLD:
    """The process given its initial velocity: `sigma`, weights and scores then are those of plain score matching."""
    return dataclasses.replace(process, v0_var_scale=0.0)
