"""DDIM, ancestral sampling and PLMS, whose steps take the predicted noise to be constant (S5, S6)."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Latents
from lsgm_jax.processes.matrices import Scalars
from lsgm_jax.solvers.interval import Interval, between
from lsgm_jax.solvers.method import Cost, Method, ReverseSolver, Step, one_coordinate
from lsgm_jax.solvers.terms import Reverse


class DDIM(ReverseSolver):
    """Samples q(z_s | z_t, z_0) with the predicted z_0, with a share of its noise or none (S6)."""

    eta: float = eqx.field(static=True)
    temperature: float = eqx.field(static=True)
    clip: float | None = eqx.field(static=True)
    rederive_eps: bool = eqx.field(static=True)

    def advance(self, term: Reverse, step: Step, z: Latents, memory: None) -> tuple[Latents, None]:
        """Takes one evaluation, and draws noise unless eta is 0."""
        interval = between(term.problem.process, step.s, step.t)
        eps_hat = term.problem.eps(z, step.t)
        excess = _excess(interval, z, eps_hat, self.clip)
        fall, noise = _stochastic(interval, self.eta) if self.eta > 0.0 else (interval.fall(), 0.0)
        if self.rederive_eps:
            z_s = (z - fall * (eps_hat + interval.alpha_t / interval.sigma_t * excess)) / interval.mean
        else:
            z_s = (z - fall * eps_hat) / interval.mean - interval.alpha_s * excess
        if self.eta == 0.0:
            return z_s, None
        return z_s + self.temperature * noise * term.problem.noise.draw(step.index, 0, z), None


class PLMS(ReverseSolver):
    """DDIM with a combination of the last four predictions, by the weights of equal steps (Liu et al. 2022)."""

    def remember(self, term: Reverse, z: Latents) -> tuple[Latents, ...]:
        """Returns zeros for the three previous predictions, latest first."""
        return (jnp.zeros_like(z),) * 3

    def advance(
        self, term: Reverse, step: Step, z: Latents, memory: tuple[Latents, ...]
    ) -> tuple[Latents, tuple[Latents, ...]]:
        """Takes one evaluation; two in the first step, which averages the predictions at its two ends."""
        problem, interval = term.problem, between(term.problem.process, step.s, step.t)
        predictions = (problem.eps(z, step.t), *memory)

        def averaged() -> Latents:
            trial = interval.follow(z, predictions[0])
            return 0.5 * (predictions[0] + problem.eps(trial, step.s))

        def combined() -> Latents:
            weights = jnp.asarray(_ADAMS_BASHFORTH, z.dtype)[jnp.clip(step.index - 1, 0, 2)]
            weighted = (weight * eps_hat for weight, eps_hat in zip(weights, predictions, strict=True))
            return functools.reduce(jnp.add, weighted)

        eps_hat = jax.lax.cond(step.index == 0, averaged, combined)
        return interval.follow(z, eps_hat), predictions[:-1]


# Weights for 1, 2 and 3 previous predictions, the present one first.
_ADAMS_BASHFORTH = (
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def ddim(
    *, eta: float = 0.0, temperature: float = 1.0, clip: float | None = None, rederive_eps: bool = False
) -> Method:
    """DDIM (Song, Meng and Ermon 2021, eq. 12), for any process of one coordinate.

    Args:
        eta: noise of each step as a share of that of ancestral sampling; 0 is deterministic.
        temperature: factor of that noise. Any value but 1 (with eta > 0) samples another distribution.
        clip: predicted data are clipped to [-clip, clip]; None for no clipping.
        rederive_eps: whether the predicted noise is derived again from the clipped data, as in DDPM's posterior and as
            `Ancestral` does. By default it stays the network's, as in diffusers and in LDM. No difference without clip.

    Raises:
        ValueError: if eta is not in [0, 1], or temperature or clip is not positive.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta={eta}: give a number from 0 (deterministic) to 1 (ancestral)")
    return _ddim("DDIM", eta, temperature, clip, rederive_eps)


def ancestral(*, temperature: float = 1.0, clip: float | None = None) -> Method:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2, with the lower variance): DDIM with eta = 1.

    With 5 to 20 steps its samples are up to 1.6 times as far from the data as those of DDIM.

    Args:
        temperature: factor of the noise of each step.
        clip: predicted data are clipped to [-clip, clip]; None for no clipping. The step draws from the posterior given
            the clipped data, as in DDPM.

    Raises:
        ValueError: if temperature or clip is not positive.
    """
    return _ddim("Ancestral", 1.0, temperature, clip, rederive_eps=True)


def plms() -> Method:
    """Pseudo linear multistep sampling as in LDM (Liu et al. 2022). It takes one evaluation more than steps.

    The weights are those of Adams-Bashforth for equal steps. Steps of sigma / alpha are not equal, hence order 2.
    """
    return Method(
        name="PLMS",
        scheme=PLMS(),
        dynamics="own",
        order=2,
        cost=Cost(1, extra=1),
        refuse=one_coordinate("PLMS"),
    )


def _ddim(name: str, eta: float, temperature: float, clip: float | None, rederive_eps: bool) -> Method:
    for label, value in (("temperature", temperature), ("clip", clip)):
        if value is not None and value <= 0.0:
            raise ValueError(f"{label}={value}: give a positive number")
    scheme = DDIM(eta, temperature, clip, rederive_eps)
    return Method(
        name=name,
        scheme=scheme,
        dynamics="own",
        order=1,
        cost=Cost(1),
        stochastic=eta > 0.0,
        refuse=one_coordinate(name),
    )


def _stochastic(interval: Interval, eta: float) -> tuple[Scalars, Scalars]:
    """Returns the factor of eps_hat, in place of `Interval.fall`, and the standard deviation of the noise (S6)."""
    mean, variance, _, sigma_s, _, sigma_t = interval
    rest = (mean * sigma_s) ** 2 + (1.0 - eta**2) * variance
    old = sigma_s * jnp.sqrt(rest) / sigma_t
    new = eta * sigma_s / sigma_t * jnp.sqrt(variance)
    return (variance + (mean * new) ** 2) / (sigma_t + mean * old), new


def _excess(interval: Interval, z_t: Latents, eps_hat: Latents, clip: float | None) -> Latents | float:
    """Returns what clipping removes from the predicted data; exactly 0 where nothing is clipped."""
    if clip is None:
        return 0.0
    data = interval.data(z_t, eps_hat)
    return data - jnp.clip(data, -clip, clip)
