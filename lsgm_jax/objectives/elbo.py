"""The LSGM bound: a VAE's evidence lower bound whose cross entropy is denoising score matching.

    -log p(x) <= E_q[-log p(x|z_0)] - H(q(z_0|x)) + CE(q(z_0|x) || p(z_0))                             (O1)
    CE ~ E_{t, eps} w_ll(t) / r(t) |eps - eps_hat(z_t, t)|^2 + dims H(z_t_min | z_0)                   (O2)

with an expectation over t ~ r on [t_min, 1], and neglecting what happens before t_min and after t = 1. It holds for
every process: for CLD (LSGM-CLD) the error is that of the velocity, and the entropy is that of position and velocity
less what the velocity had at the start. Everything is in nats, summed over a sample's dimensions.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import (
    EpsNet,
    Key,
    Latents,
    PerSample,
    Scalar,
    State,
    Times,
    expand,
    scale_gradient,
    sum_per_sample,
)
from lsgm_jax.objectives.score_matching import (
    Norm,
    l2,
    phase_prediction_error,
    prediction_error,
    score_matching,
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
    data_variance,
    gaussian_eps,
    kernel,
    log_snr,
    noise_entropy,
    perturb,
    unit_noise,
)


class Matching(NamedTuple):
    """Score matching of one batch, per sample, nats."""

    loss: PerSample  # what to differentiate: the prior's error, and what else the encoder has to see
    prior_loss: PerSample  # the prior's weighted error alone
    cross_entropy: PerSample  # likelihood weighting, constant included: an estimate of CE(q(z_0|x) || p(z_0))


class SeparateMatching(NamedTuple):
    """Score matching with times of their own for prior and encoder, nats."""

    prior_loss: PerSample  # differentiates with respect to the prior alone
    cross_entropy: Latents  # per dimension; differentiates with respect to z_0 alone


class Draw(NamedTuple):
    """Times and the noise that perturbs the latents there."""

    t: Times
    eps: State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """How the prior is trained. The encoder always minimises the bound: likelihood weighting (LSGM section 3.3).

    Attributes:
        prior_weighting: of the prior's squared error.
        density: of the prior's times.
        encoder_density: of the encoder's times; None to share the prior's, which needs one evaluation of the
            network less (LSGM Algorithm 3 and 2).
        encoder_uses_ema: whether the encoder, with times of its own, meets the moving average of the prior.
        spread: how evenly the times of a batch are drawn.
        control_variate: estimate only what the network adds to the Gaussian prior, whose cross entropy is known
            (O9). It leaves the prior's gradient alone, and takes from the encoder's the more noise the
            nearer the latent is to standard Gaussian. False gives the published estimate.
        norm: how large an error of the prior is. What an encoder minimises is in the prior's loss under `l2` alone, so
            others are for models of the data. Bounds know `l2` only, whatever trains the network.
    """

    prior_weighting: Weighting
    density: TimeDensity
    encoder_density: TimeDensity | None = None
    encoder_uses_ema: bool = False
    spread: Spread = stratified
    control_variate: bool = True
    norm: Norm = l2


def sample_draw(
    density: TimeDensity,
    spread: Spread,
    process: Process,
    key: Key,
    z_0: Latents,
    stratum: Stratum = Stratum(),
) -> Draw:
    """Times from the density and unit noise for the latents."""
    k_times, k_eps = jax.random.split(key)
    t = sample_times(density, process, k_times, len(z_0), stratum, spread)
    return Draw(t, unit_noise(process, k_eps, z_0.shape))


def denoise(
    objective: Objective,
    process: Process,
    eps_net: EpsNet,
    z_0: Latents,
    draw: Draw,
    encoder_scale: float | Scalar = 1.0,
) -> Matching:
    """Matches the score so that one backward pass serves prior and encoder (LSGM Algorithm 3, O4).

    The encoder meets the network only through z_t, so scaling the gradient there by w_q / w_p turns the
    prior's loss into the encoder's. `encoder_scale` is the KL coefficient, which concerns the encoder alone.

    Args:
        z_0: latent of the encoder, [batch, ...].
        draw: times from `objective.density`.

    Returns:
        The loss to differentiate and the value of the cross entropy, both [batch]. With the control variate
        the cross entropy estimates a bound on -log p(z_0) for every t_min (O7).

    Raises:
        ValueError: if the objective's norm is not `l2`.
    """
    _require_l2(objective)
    return _denoise(objective, process, eps_net, z_0, draw, encoder_scale)


def _require_l2(objective: Objective) -> None:
    if objective.norm is not l2:
        raise ValueError(f"norm={objective.norm.__name__}: an encoder needs its prior trained by l2")


def _denoise(
    objective: Objective,
    process: Process,
    eps_net: EpsNet,
    z_0: Latents,
    draw: Draw,
    encoder_scale: float | Scalar = 1.0,
) -> Matching:
    """As `denoise`; under another norm the gradient with respect to z_0 means nothing."""
    t, eps = draw
    density = objective.density.density(process, t)
    weight = objective.prior_weighting(process, t)
    w_p, w_q = weight / density, likelihood(process, t) / density

    z_t = perturb(process, z_0, t, eps)
    error = prediction_error(eps_net, scale_gradient(z_t, encoder_scale * w_q / w_p), t, eps)
    known = sum_per_sample(_known(objective, objective.density, process, z_0, z_t, draw))
    prior_loss = objective.norm(error, weight) / density
    loss = prior_loss + encoder_scale * (known if objective.control_variate else 0.0)
    return Matching(loss, prior_loss, l2(error, w_q) + known)


def match_data(objective: Objective, process: Process, eps_net: EpsNet, z_0: Latents, key: Key) -> Matching:
    """Matches the score given the data: one draw of times and noise, under any norm. Hybrid matching for CLD."""
    draw = sample_draw(objective.density, objective.spread, process, key, z_0)
    return _denoise(objective, process, eps_net, z_0, draw)


def match_data_and_velocity(
    objective: Objective, process: Process, start: Process, eps_net: EpsNet, z_0: Latents, key: Key
) -> Matching:
    """Matches the score given data and initial velocity: plain denoising score matching for CLD (O12).

    Its cross entropy estimates the same number as that of `match_data`, with more noise and no control variate.

    Args:
        start: `known_start(process)`.
    """
    k_draw, k_velocity = jax.random.split(key)
    t, eps = sample_draw(objective.density, objective.spread, process, k_draw, z_0)
    phase, _ = add_auxiliary(process, k_velocity, z_0, 0.0)
    error = phase_prediction_error(process, start, eps_net, phase, t, eps)
    density = objective.density.density(process, t)
    prior_loss = objective.norm(error, objective.prior_weighting(start, t)) / density
    at_t_min = noise_entropy(start, jnp.asarray(objective.density.t_min, t.dtype))
    constant = z_0[0].size * (at_t_min - auxiliary_entropy(process))
    return Matching(prior_loss, prior_loss, l2(error, likelihood(start, t) / density) + constant)


def score_cross_entropy(
    process: Process, eps_net: EpsNet, z_0: Latents, t_min: float, key: Key, stratum: Stratum = Stratum()
) -> PerSample:
    """One draw of CE(q(z_0|x) || p(z_0)) for scoring, nats.

    Whatever the training objective, the times come from `Defensive` and the control variate is on, so that the
    noise is low and the expectation a bound for every t_min (O7). Repeated draws should pass their `stratum`.
    """
    scoring = Objective(prior_weighting=likelihood, density=Defensive(t_min=t_min))
    draw = sample_draw(scoring.density, scoring.spread, process, key, z_0, stratum)
    return denoise(scoring, process, eps_net, z_0, draw).cross_entropy


def denoise_separately(
    objective: Objective,
    process: Process,
    eps_net: EpsNet,
    frozen_eps_net: EpsNet,
    z_0: Latents,
    prior_draw: Draw,
    encoder_draw: Draw,
) -> SeparateMatching:
    """Matches the score at other times for the encoder than for the prior (LSGM Algorithm 2).

    Neither term reaches the other's parameters, so their sum can be differentiated at once; and the encoder's is
    given per dimension, so that groups of latents can be weighed one by one.

    Args:
        frozen_eps_net: the prediction with parameters that take no gradient: those of `eps_net`, or their average.
        prior_draw: times from `objective.density`.
        encoder_draw: times from `objective.encoder_density`, or from `objective.density` if that is None.

    Raises:
        ValueError: if the objective's norm is not `l2`.
    """
    _require_l2(objective)
    weighting, (t, eps) = objective.prior_weighting, prior_draw
    prior_error = score_matching(weighting, process, eps_net, jax.lax.stop_gradient(z_0), t, eps)
    prior_loss = prior_error / objective.density.density(process, t)

    t, eps = encoder_draw
    density = objective.encoder_density or objective.density
    w_q = likelihood(process, t) / density.density(process, t)
    z_t = perturb(process, z_0, t, eps)
    error = squared_error(frozen_eps_net, z_t, t, eps)
    known = _known(objective, density, process, z_0, z_t, encoder_draw)
    return SeparateMatching(prior_loss, expand(w_q, error) * error + known)


def _known(
    objective: Objective, density: TimeDensity, process: Process, z_0: Latents, z_t: State, draw: Draw
) -> Latents:
    """What the cross entropy contains beside the network's error, per dimension: a constant or O9's bracket."""
    t, eps = draw
    if not objective.control_variate:
        start = jnp.asarray(density.t_min, t.dtype)
        return jnp.full_like(z_0, noise_entropy(process, start) - auxiliary_entropy(process))
    w_q = likelihood(process, t) / density.density(process, t)
    gaussian_error = squared_error(lambda z_t, t: gaussian_eps(process, z_t, t), z_t, t, eps)
    return gaussian_bound(process, z_0, density.t_min) - expand(w_q, gaussian_error) * gaussian_error


def gaussian_bound(process: Process, z_0: Latents, t_min: float) -> Latents:
    """The bound (O7) on -log p(z_0) for the exact score of a Gaussian prior, in closed form (O9), nats per dimension.

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
