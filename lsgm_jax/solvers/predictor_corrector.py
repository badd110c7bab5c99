"""Predictor-corrector sampling: a step of the reverse SDE, then Langevin steps that correct the marginal (S9)."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Latents, Scalar, expand, sum_per_sample
from lsgm_jax.processes.linear import Process
from lsgm_jax.solvers.interval import Interval, between
from lsgm_jax.solvers.method import Cost, Method, ReverseSolver, Step, one_coordinate
from lsgm_jax.solvers.terms import Reverse

Predictor = Literal["reverse_diffusion", "ancestral"]
Norms = Literal["batch", "sample"]


class PredictorCorrector(ReverseSolver):
    """A step of the predictor with noise of part 0, then corrections with noise of parts 1, 2, ..."""

    predictor: Predictor = eqx.field(static=True)
    corrections: int = eqx.field(static=True)
    snr: float = eqx.field(static=True)
    norms: Norms = eqx.field(static=True)

    def advance(self, term: Reverse, step: Step, z: Latents, memory: None) -> tuple[Latents, None]:
        """Takes one evaluation at t, and one at s for every correction."""
        problem, interval = term.problem, between(term.problem.process, step.s, step.t)
        draw = lambda part: problem.noise.draw(step.index, part, z)
        z = _predict(self.predictor, interval, z, problem.eps(z, step.t), draw(0))
        decay = _decay(problem.process, step)
        for part in range(1, self.corrections + 1):
            noise, eps_hat = draw(part), problem.eps(z, step.s)
            size = decay * self.snr * self._length(noise) / self._length(eps_hat)
            # z + c score + sqrt(2 c) noise, with c = 2 (size sigma_s)^2 and score = -eps_hat / sigma_s.
            z = z + 2.0 * interval.sigma_s * size * (noise - size * eps_hat)
        return z, None

    def _length(self, values: Latents) -> Float[Array, "..."]:
        """Returns the mean norm of the batch, or the norm of each sample."""
        each = jnp.sqrt(sum_per_sample(values**2))
        return jnp.mean(each) if self.norms == "batch" else expand(each, values)


def predictor_corrector(
    *,
    predictor: Predictor = "reverse_diffusion",
    corrections: int = 1,
    snr: float = 0.16,
    norms: Norms = "batch",
) -> Method:
    """Predictor-corrector sampling (Song et al. 2021, Algorithms 4 and 5).

    The order is 1 without corrections. With corrections it is 0: the size of the Langevin steps depends on `snr` alone,
    so the samples do not converge to the data with the number of steps. With ten steps or fewer they are up to twice as
    far from Gaussian data as those of DDIM.

    Args:
        predictor: "reverse_diffusion" or "ancestral".
        corrections: number of Langevin steps after each step of the predictor.
        snr: signal-to-noise ratio of the Langevin steps.
        norms: the norms of noise and score, which set the size of the Langevin steps. "batch": means over the batch on
            all devices, as published; a sample then depends a little on the others of its call. "sample": those of each
            sample. In few dimensions the score of a sample may be near zero, and its step huge: 1 % of samples in the
            plane are thrown far out.

    Raises:
        ValueError: for an unknown predictor or kind of norms, a negative number of corrections, or an snr that is not
            positive.
    """
    if predictor not in ("reverse_diffusion", "ancestral"):
        raise ValueError(f"predictor={predictor!r} is none of reverse_diffusion, ancestral")
    if norms not in ("batch", "sample"):
        raise ValueError(f"norms={norms!r} is none of batch, sample")
    if corrections < 0:
        raise ValueError(f"corrections={corrections}: give 0 or more")
    if snr <= 0.0:
        raise ValueError(f"snr={snr}: give a positive number")
    return Method(
        name="PredictorCorrector",
        scheme=PredictorCorrector(predictor, corrections, snr, norms),
        dynamics="own",
        order=0 if corrections else 1,
        cost=Cost(1 + corrections),
        stochastic=True,
        refuse=one_coordinate("PredictorCorrector"),
        grid="quadratic",
    )


def _predict(
    predictor: Predictor, interval: Interval, z_t: Latents, eps_hat: Latents, noise: Latents
) -> Latents:
    mean, variance, _, sigma_s, _, sigma_t = interval
    drift, deviation = variance / sigma_t * eps_hat, jnp.sqrt(variance)
    if predictor == "ancestral":
        return (z_t - drift) / mean + sigma_s / sigma_t * deviation * noise
    return (2.0 - mean) * z_t - drift + deviation * noise


def _decay(process: Process, step: Step) -> Scalar:
    """Returns the signal left by one step of the forward process at s: the papers' sqrt(1 - beta_i), 1 for `VE`."""
    return jnp.exp((step.t - step.s) * process.drift(step.s)[..., 0, 0])
