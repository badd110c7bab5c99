"""Predictor-corrector sampling: a step of the reverse SDE, then Langevin steps that correct the marginal (S9)."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Latents, expand, sum_per_sample
from lsgm_jax.solvers.interval import Interval, between
from lsgm_jax.solvers.method import Cost, Method, ReverseSolver, Step, one_coordinate
from lsgm_jax.solvers.terms import Reverse

Predictor = Literal["reverse_diffusion", "ancestral"]


class PredictorCorrector(ReverseSolver):
    """A step of the predictor with noise of part 0, then corrections with noise of parts 1, 2, ..."""

    predictor: Predictor = eqx.field(static=True)
    corrections: int = eqx.field(static=True)
    snr: float = eqx.field(static=True)

    def advance(self, term: Reverse, step: Step, z: Latents, memory: None) -> tuple[Latents, None]:
        """Takes one evaluation at t, and one at s for every correction."""
        problem, interval = term.problem, between(term.problem.process, step.s, step.t)
        draw = lambda part: problem.noise.draw(step.index, part, z)
        z = _predict(self.predictor, interval, z, problem.eps(z, step.t), draw(0))
        for part in range(1, self.corrections + 1):
            z = self._correct(interval, z, problem.eps(z, step.s), draw(part))
        return z, None

    def _correct(self, interval: Interval, z_s: Latents, eps_hat: Latents, noise: Latents) -> Latents:
        """Returns z + c score + sqrt(2 c) noise, c = 2 mean^2 (snr |noise| / |score|)^2, score = -eps_hat / sigma_s."""
        ratio = self.snr * _norms(noise, z_s) / _norms(eps_hat, z_s)
        size = interval.mean * ratio
        return z_s + 2.0 * interval.sigma_s * size * (noise - size * eps_hat)


def predictor_corrector(
    *, predictor: Predictor = "reverse_diffusion", corrections: int = 1, snr: float = 0.16
) -> Method:
    """Predictor-corrector sampling (Song et al. 2021, Algorithms 4 and 5), with norms per sample, not batch means.

    The order is 1 without corrections. With corrections it is 0: the size of the Langevin steps depends on `snr` alone,
    so the samples do not converge to the data with the number of steps.

    Args:
        predictor: "reverse_diffusion" or "ancestral".
        corrections: number of Langevin steps after each step of the predictor.
        snr: signal-to-noise ratio of the Langevin steps.

    Raises:
        ValueError: for an unknown predictor, a negative number of corrections, or an snr that is not positive.
    """
    if predictor not in ("reverse_diffusion", "ancestral"):
        raise ValueError(f"predictor={predictor!r} is none of reverse_diffusion, ancestral")
    if corrections < 0:
        raise ValueError(f"corrections={corrections}: give 0 or more")
    if snr <= 0.0:
        raise ValueError(f"snr={snr}: give a positive number")
    return Method(
        name="PredictorCorrector",
        scheme=PredictorCorrector(predictor, corrections, snr),
        dynamics="own",
        order=0 if corrections else 1,
        cost=Cost(1 + corrections),
        stochastic=True,
        refuse=one_coordinate("PredictorCorrector"),
    )


def _predict(
    predictor: Predictor, interval: Interval, z_t: Latents, eps_hat: Latents, noise: Latents
) -> Latents:
    mean, variance, _, sigma_s, _, sigma_t = interval
    drift, deviation = variance / sigma_t * eps_hat, jnp.sqrt(variance)
    if predictor == "ancestral":
        return (z_t - drift) / mean + sigma_s / sigma_t * deviation * noise
    return (2.0 - mean) * z_t - drift + deviation * noise


def _norms(values: Latents, like: Latents) -> Float[Array, "..."]:
    return expand(jnp.sqrt(sum_per_sample(values**2)), like)
