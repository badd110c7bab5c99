"""The LSGM bound: the evidence lower bound of a VAE whose cross entropy is denoising score matching (DSM).

    -log p(x) <= E_q[-log p(x|z_0)] - H(q(z_0|x)) + CE(q(z_0|x) || p(z_0))                             (O1)
    CE ~ E_{t, eps} w_ll(t) / r(t) |eps - eps_hat(z_t, t)|^2 + dims H(z_t_min | z_0)                   (O2)

with an expectation over t ~ r on [t_min, 1], and neglecting what happens before t_min and after t = 1. It holds for
every process: for CLD (LSGM-CLD) the error is that of the velocity, and the entropy is that of position and velocity
less that of the velocity at the start. Everything is in nats, summed over the dimensions of a sample.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import (
    EpsNet,
    Key,
    Latents,
    PerSample,
    State,
    coordinates,
    expand,
    scale_gradient,
    sum_per_sample,
)
from lsgm_jax.objectives.bound import Encoded
from lsgm_jax.objectives.control_variate import Draw, known_cross_entropy
from lsgm_jax.objectives.kl import KLWeight, weigh
from lsgm_jax.objectives.score_matching import (
    Norm,
    l2,
    phase_prediction_error,
    prediction_error,
    squared_error,
)
from lsgm_jax.objectives.time_densities import (
    Defensive,
    Spread,
    Stratum,
    TimeDensity,
    sample_times,
    stratified,
)
from lsgm_jax.objectives.weightings import Weighting, likelihood
from lsgm_jax.processes.linear import (
    Process,
    add_auxiliary,
    auxiliary_entropy,
    noise_entropy,
    perturb,
    unit_noise,
)

Autoencode = Callable[[Latents], Encoded]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How the prior is trained. The encoder always minimises the bound: likelihood weighting (LSGM section 3.3).

    Attributes:
        prior_weighting: weighting lambda(t) of the squared error of the prior.
        density: density r(t) of the times t of the prior.
        encoder_density: density of a separate t for the encoder (LSGM Algorithm 2); None to share the t of the prior,
            which takes one evaluation of the network less (Algorithm 3), and without KL balancing one backward pass.
        encoder_uses_ema: whether the encoder's loss uses the EMA prior; needs a separate t.
        spread: how evenly the times of a batch are spread.
        control_variate: estimate only what the network adds to the Gaussian prior, whose cross entropy is known
            (O9). This leaves the gradient of the prior alone, and removes the more noise from that of the encoder the
            nearer the latent is to a standard Gaussian. False gives the published estimate.
        norm: norm of the prior's error. The joint loss needs `l2`; other norms are for models of the data. Bounds
            always use `l2`.
    """

    prior_weighting: Weighting
    density: TimeDensity
    encoder_density: TimeDensity | None = None
    encoder_uses_ema: bool = False
    spread: Spread = stratified
    control_variate: bool = True
    norm: Norm = l2

    def known(self, density: TimeDensity, process: Process, z_0: Latents, draw: Draw, z_t: State) -> Latents:
        """Computes the part of the cross entropy that needs no network; see `known_cross_entropy`."""
        return known_cross_entropy(density, process, z_0, draw, z_t, control_variate=self.control_variate)


class JointLoss(NamedTuple):
    """The joint loss of one batch, per sample, nats.

    Attributes:
        loss: the scalar to differentiate is its mean; its value mixes weightings.
        prior_loss: the weighted error of the prior alone.
        cross_entropy: an estimate of CE(q(z_0|x) || p(z_0)), constant included.
    """

    encoded: Encoded
    loss: PerSample
    prior_loss: PerSample
    cross_entropy: PerSample


class DSMLoss(NamedTuple):
    """Denoising score matching of one batch of given latents, per sample, nats; fields as in `JointLoss`."""

    prior_loss: PerSample
    cross_entropy: PerSample


def joint_dsm_loss(
    objective: Objective,
    process: Process,
    autoencode: Autoencode,
    eps_net: EpsNet,
    x: Latents,
    key: Key,
    kl: KLWeight = KLWeight(),
) -> JointLoss:
    """Computes the joint loss of VAE and prior in one backward pass: LSGM eq. 9 by Algorithm 3 (O4).

    Args:
        autoencode: x to z_0 ~ q(z_0|x) and -log p(x|z_0).
        eps_net: the mixed noise prediction (z_t, t) -> eps_hat.
        x: [batch, ...].
        kl: weight beta of KL(q || p) in the VAE's loss; the prior's loss does not see it.
    """
    require_l2(objective)
    beta = kl.coefficient
    # 1. The encoder draws z_0 ~ q(z_0|x), the decoder reconstructs: E_q[-log p(x|z_0)].
    encoded = autoencode(x)
    latent, z_0 = encoded.latent, encoded.latent.z_0
    # 2. Negative entropy E_q[log q(z_0|x)], and the cross entropy of latents besides z_0, whose prior is N(0, I).
    kl_terms = beta * (latent.rest - latent.total_entropy)
    # 3. Diffuse to a random time: t ~ r(t), eps ~ N(0, I), z_t = alpha_t z_0 + sigma_t eps.
    t, eps = draw = sample_draw(objective.density, objective.spread, process, key, z_0)
    z_t = perturb(process, z_0, t, eps)
    # 4. Importance weights: w_p = lambda(t) / r(t) trains the prior (Table 1), w_q = w_ll(t) / r(t) the encoder.
    lambda_t, r_t = objective.prior_weighting(process, t), objective.density.density(process, t)
    w_p, w_q = lambda_t / r_t, likelihood(process, t) / r_t
    # 5. The encoder sees the network through z_t alone: with its gradient scaled there, one pass serves both.
    error2 = sum_per_sample((coordinates(eps)[-1] - eps_net(scale_gradient(z_t, beta * w_q / w_p), t)) ** 2)
    prior_loss = lambda_t * error2 / r_t
    # 6. The part of the cross entropy that needs no network: a constant, or the control variate (O9).
    known = sum_per_sample(objective.known(objective.density, process, z_0, draw, z_t))
    dsm = prior_loss + beta * (known if objective.control_variate else 0.0)
    return JointLoss(encoded, encoded.reconstruction + kl_terms + dsm, prior_loss, w_q * error2 + known)


def joint_dsm_loss_separate_t(
    objective: Objective,
    process: Process,
    autoencode: Autoencode,
    eps_nets: tuple[EpsNet, EpsNet],
    x: Latents,
    keys: tuple[Key, Key],
    kl: KLWeight,
    groups_per_scale: tuple[int, ...],
) -> JointLoss:
    """Computes the joint loss with separate errors of prior and encoder, at a separate t each (LSGM Algorithm 2).

    Neither error reaches the parameters of the other. The encoder's is per dimension, to balance groups of latents.
    Without `encoder_density` it is at the t and eps of the prior: groups are balanced at shared times.

    Args:
        eps_nets: the noise prediction that learns, and one whose parameters take no gradient, for the encoder.
        keys: for t and eps of the prior and of the encoder; a shared draw takes the first.
        kl, groups_per_scale: see `kl.weigh`.
    """
    require_l2(objective)
    prior_net, encoder_net = eps_nets
    # 1. As in `joint_dsm_loss`.
    encoded = autoencode(x)
    latent, z_0 = encoded.latent, encoded.latent.z_0
    # 2. The prior at its t ~ r(t): lambda(t) / r(t) |eps - eps_hat|^2, with no gradient to the encoder.
    t, eps = draw = sample_draw(objective.density, objective.spread, process, keys[0], z_0)
    error = squared_error(prior_net, perturb(process, jax.lax.stop_gradient(z_0), t, eps), t, eps)
    lambda_t, r_t = objective.prior_weighting(process, t), objective.density.density(process, t)
    prior_loss = lambda_t * sum_per_sample(error) / r_t
    # 3. The encoder, mostly at another t: w_ll(t) / r(t) |eps - eps_hat|^2, with no gradient to the prior.
    density = objective.density
    if objective.encoder_density is not None:
        density = objective.encoder_density
        draw = sample_draw(density, objective.spread, process, keys[1], z_0)
    t, eps = draw
    z_t = perturb(process, z_0, t, eps)
    error = squared_error(encoder_net, z_t, t, eps)
    w_q = likelihood(process, t) / density.density(process, t)
    cross_entropy = expand(w_q, error) * error + objective.known(density, process, z_0, draw, z_t)
    # 4. KL(q || p) per group, balanced, times its coefficient.
    divergence = weigh(latent.divergence(cross_entropy, groups_per_scale[0]), kl, groups_per_scale)
    loss = encoded.reconstruction + divergence + prior_loss
    return JointLoss(encoded, loss, prior_loss, sum_per_sample(cross_entropy))


def require_l2(objective: Objective) -> None:
    """Checks that an encoder can be trained with the objective.

    Raises:
        ValueError: if the norm is not `l2`.
    """
    if objective.norm is not l2:
        raise ValueError(f"norm={objective.norm.__name__}: an encoder needs its prior trained by l2")


def sample_draw(
    density: TimeDensity,
    spread: Spread,
    process: Process,
    key: Key,
    z_0: Latents,
    stratum: Stratum = Stratum(),
) -> Draw:
    """Draws times t ~ r(t) and unit noise for the latents z_0 [batch, ...]."""
    k_times, k_eps = jax.random.split(key)
    t = sample_times(density, process, k_times, len(z_0), stratum, spread)
    return Draw(t, unit_noise(process, k_eps, z_0.shape))


def dsm_loss(objective: Objective, process: Process, eps_net: EpsNet, z_0: Latents, draw: Draw) -> DSMLoss:
    """Computes denoising score matching of given latents, under any norm: hybrid score matching for CLD.

    With the control variate the cross entropy estimates a bound on -log p(z_0) for every t_min (O7).

    Args:
        z_0: [batch, ...].
        draw: with times from `objective.density`.
    """
    t, eps = draw
    lambda_t, r_t = objective.prior_weighting(process, t), objective.density.density(process, t)
    z_t = perturb(process, z_0, t, eps)
    error = prediction_error(eps_net, z_t, t, eps)
    known = sum_per_sample(objective.known(objective.density, process, z_0, draw, z_t))
    return DSMLoss(objective.norm(error, lambda_t) / r_t, l2(error, likelihood(process, t) / r_t) + known)


def plain_dsm_loss(
    objective: Objective, process: Process, start: Process, eps_net: EpsNet, z_0: Latents, key: Key
) -> DSMLoss:
    """Computes plain denoising score matching for CLD, given data and initial velocity (O12).

    Its cross entropy has the expectation of that of `dsm_loss`, with more noise and no control variate.

    Args:
        start: `known_start(process)`.
    """
    k_draw, k_velocity = jax.random.split(key)
    t, eps = sample_draw(objective.density, objective.spread, process, k_draw, z_0)
    phase, _ = add_auxiliary(process, k_velocity, z_0, 0.0)
    error = phase_prediction_error(process, start, eps_net, phase, t, eps)
    r_t = objective.density.density(process, t)
    prior_loss = objective.norm(error, objective.prior_weighting(start, t)) / r_t
    at_t_min = noise_entropy(start, jnp.asarray(objective.density.t_min, t.dtype))
    constant = z_0[0].size * (at_t_min - auxiliary_entropy(process))
    return DSMLoss(prior_loss, l2(error, likelihood(start, t) / r_t) + constant)


def evaluation_cross_entropy(
    process: Process, eps_net: EpsNet, z_0: Latents, t_min: float, key: Key, stratum: Stratum = Stratum()
) -> PerSample:
    """Estimates CE(q(z_0|x) || p(z_0)) by one draw, for likelihood evaluation, nats.

    Whatever the training objective, times come from `Defensive` and the control variate is on, so that the noise is
    low and the expectation a bound for every t_min (O7). Repeated draws should pass their `stratum`.
    """
    objective = Objective(prior_weighting=likelihood, density=Defensive(t_min=t_min))
    draw = sample_draw(objective.density, objective.spread, process, key, z_0, stratum)
    return dsm_loss(objective, process, eps_net, z_0, draw).cross_entropy
