"""The LSGM bound: a VAE's evidence lower bound whose cross entropy is denoising score matching.

    -log p(x) <= E_q[-log p(x|z_0)] - H(q(z_0|x)) + CE(q(z_0|x) || p(z_0))                             (O1)
    CE ~ E_{t, eps} w_ll(t) / r(t) |eps - eps_hat(z_t, t)|^2 + dims (1 + log 2 pi sigma(t_min)^2) / 2  (O2)

with an expectation over t ~ r on [t_min, 1], and neglecting what happens before t_min and after t = 1.
Everything is in nats, summed over a sample's dimensions.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from lsgm_jax.arrays import EpsNet, Latents, PerSample, Scalar, Times, scale_gradient, sum_per_sample
from lsgm_jax.diffusions.linear import Process, noise_entropy, normal_eps, perturb, variance
from lsgm_jax.objectives.times import TimeDensity
from lsgm_jax.objectives.weights import Weighting, likelihood


class Matching(NamedTuple):
    """Denoising score matching of one batch, per sample, nats."""

    loss: PerSample  # what to differentiate: the prior's error, and what else the encoder has to see
    prior_loss: PerSample  # the prior's weighted error alone
    cross_entropy: PerSample  # likelihood weighting, constant included: an estimate of CE(q(z_0|x) || p(z_0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How the prior is trained. The encoder always minimises the bound: likelihood weighting (LSGM section 3.3).

    Attributes:
        prior_weighting: of the prior's squared error.
        density: of the times, shared by prior and encoder.
        control_variate: estimate only what the network adds to the Normal prior, whose cross entropy is known
            (O9). It leaves the prior's gradient alone, and takes from the encoder's the more noise the
            nearer the latent is to standard Normal. False gives the published estimate.
    """

    prior_weighting: Weighting
    density: TimeDensity
    control_variate: bool = True


def denoise(
    objective: Objective,
    process: Process,
    eps_net: EpsNet,
    z_0: Latents,
    t: Times,
    eps: Latents,
    encoder_scale: float | Scalar = 1.0,
) -> Matching:
    """Matches the score at `t` so that one backward pass serves prior and encoder (LSGM Algorithm 3, O4).

    The encoder meets the network only through z_t, so scaling the gradient there by w_q / w_p turns the
    prior's loss into the encoder's. `encoder_scale` is the KL coefficient, which concerns the encoder alone.

    Args:
        z_0: latent of the encoder, [batch, ...].
        t: times drawn from `objective.density`, [batch].
        eps: unit noise of the shape of `z_0`.

    Returns:
        The loss to differentiate and the value of the cross entropy, both [batch]. With the control variate
        the cross entropy estimates a bound on -log p(z_0) for every t_min (O7).
    """
    density = objective.density.density(process, t)
    w_p = objective.prior_weighting(process, t) / density
    w_q = likelihood(process, t) / density

    z_t = perturb(process, z_0, t, eps)
    eps_hat = eps_net(scale_gradient(z_t, encoder_scale * w_q / w_p), t)
    error = sum_per_sample((eps - eps_hat) ** 2)
    if not objective.control_variate:
        constant = noise_entropy(process, jnp.asarray(objective.density.t_min, t.dtype))
        return Matching(w_p * error, w_p * error, w_q * error + eps[0].size * constant)

    normal_error = sum_per_sample((eps - normal_eps(process, z_t, t)) ** 2)
    known = normal_bound(process, z_0, objective.density.t_min) - w_q * normal_error
    return Matching(w_p * error + encoder_scale * known, w_p * error, w_q * error + known)


def normal_bound(process: Process, z_0: Latents, t_min: float) -> PerSample:
    """The bound (O7) on -log p(z_0) for the exact score of a standard Normal prior, in closed form (O9), nats.

    It differs from -log N(z_0; 0, I) by two gaps that are positive on average: at t_min, where
    N(z_t / alpha, sigma^2 / alpha^2) stands in for the posterior of z_0, and at t = 1, where the prior stands
    in for the marginal of z_1.
    """
    z2 = z_0**2
    start, end = jnp.asarray(t_min, z_0.dtype), jnp.ones((), z_0.dtype)
    a2, s2 = process.alpha(start) ** 2, variance(process, start)
    gap_at_start = jnp.log1p(s2 / a2) + s2 / (a2 + s2) * (1.0 - z2)
    a2, s2 = process.alpha(end) ** 2, variance(process, end)
    marginal, prior = a2 + s2, process.prior_variance()
    gap_at_end = jnp.log(prior / marginal) + (a2 * z2 + s2) * (1.0 / prior - 1.0 / marginal)
    return 0.5 * sum_per_sample(z2 + jnp.log(2.0 * jnp.pi) + gap_at_start + gap_at_end)
