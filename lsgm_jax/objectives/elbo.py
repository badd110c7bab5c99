"""The LSGM bound: a VAE's evidence lower bound whose cross entropy is denoising score matching.

    -log p(x) <= E_q[-log p(x|z_0)] - H(q(z_0|x)) + CE(q(z_0|x) || p(z_0))                             (O1)
    CE = E_{t, eps} w_ll(t) / r(t) |eps - eps_hat(z_t, t)|^2 + dims (1 + log 2 pi sigma(t_min)^2) / 2  (O2)

with an expectation over t ~ r on [t_min, 1]. Everything is in nats, summed over a sample's dimensions.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from lsgm_jax.arrays import EpsNet, Latents, PerSample, Times, scale_gradient, sum_per_sample
from lsgm_jax.diffusions.linear import Process, noise_entropy, perturb
from lsgm_jax.objectives.times import TimeDensity
from lsgm_jax.objectives.weights import Weighting, likelihood


class Matching(NamedTuple):
    """Denoising score matching of one batch, per sample, nats."""

    loss: PerSample  # prior weighting; its gradient reaches the encoder with the encoder's weighting
    cross_entropy: PerSample  # likelihood weighting, constant included


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Which weighting trains the prior, and which density the times come from.

    The encoder always gets the likelihood weighting: it minimises the bound (LSGM section 3.2).
    """

    prior_weighting: Weighting
    density: TimeDensity


def denoise(
    objective: Objective,
    process: Process,
    eps_net: EpsNet,
    z_0: Latents,
    t: Times,
    eps: Latents,
    encoder_scale: float | PerSample = 1.0,
) -> Matching:
    """Matches the score at `t` so that one backward pass serves prior and encoder (LSGM Algorithm 3, O4).

    The encoder meets the prior only through z_t, so scaling the gradient there by w_q / w_p turns the
    prior's loss into the encoder's. `encoder_scale` is the KL coefficient, which concerns the encoder alone.

    Args:
        z_0: latent of the encoder, [batch, ...].
        t: times drawn from `objective.density`, [batch].
        eps: unit noise of the shape of `z_0`.

    Returns:
        The loss to differentiate and the value of the cross entropy, both [batch].
    """
    density = objective.density.density(process, t)
    w_p = objective.prior_weighting(process, t) / density
    w_q = likelihood(process, t) / density

    z_t = perturb(process, z_0, t, eps)
    eps_hat = eps_net(scale_gradient(z_t, encoder_scale * w_q / w_p), t)
    error = sum_per_sample((eps - eps_hat) ** 2)
    constant = noise_entropy(process, jnp.asarray(objective.density.t_min, t.dtype))
    return Matching(loss=w_p * error, cross_entropy=w_q * error + eps[0].size * constant)


def noise_control(process: Process, t: Times, eps: Latents, weight: PerSample) -> PerSample:
    """Control variate of the cross entropy: subtracting it halves the noise or better and changes no mean (O9).

    Most of the estimate's variance is that of |eps|^2, whose mean is known. For a standard Normal latent the error
    contains it exactly alpha^4 times.
    """
    return weight * process.alpha(t) ** 4 * (sum_per_sample(eps**2) - eps[0].size)
