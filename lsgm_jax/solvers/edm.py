"""Heun's method in sigma / alpha with churn (Karras et al. 2022)."""

import equinox as eqx
import jax.numpy as jnp

from lsgm_jax.arrays import Latents, Scalar
from lsgm_jax.processes.linear import Process, log_snr
from lsgm_jax.solvers.grids import time_of_log_snr
from lsgm_jax.solvers.interval import between
from lsgm_jax.solvers.method import Cost, Method, ReverseSolver, Step, one_coordinate, ruined_on
from lsgm_jax.solvers.terms import Reverse

MOST_CHURN = 2.0**0.5 - 1.0  # at most as much new noise as there is


class EDMHeun(ReverseSolver):
    """Adds noise (churn), then takes a step of Heun's method to the lower noise level (S9)."""

    churn: float = eqx.field(static=True)
    least: float = eqx.field(static=True)
    most: float = eqx.field(static=True)
    inflation: float = eqx.field(static=True)

    def advance(self, term: Reverse, step: Step, z: Latents, memory: None) -> tuple[Latents, None]:
        """Takes two evaluations, at both ends of Heun's step."""
        problem, t = term.problem, step.t
        if self.churn > 0.0:
            t = self._raised(problem.process, step.t)
            up = between(problem.process, step.t, t)
            fresh = self.inflation * jnp.sqrt(up.variance) * problem.noise.draw(step.index, 0, z)
            z = up.mean * z + fresh
        interval = between(problem.process, step.s, t)
        eps_hat = problem.eps(z, t)
        end = problem.eps(interval.follow(z, eps_hat), step.s)
        return interval.follow(z, 0.5 * (eps_hat + end)), None

    def _raised(self, process: Process, t: Scalar) -> Scalar:
        """Returns the time at which sigma / alpha is larger by the factor 1 + churn; at most 1."""
        present = log_snr(process, t)
        ratio = jnp.exp(-0.5 * present)
        raised = time_of_log_snr(process, present - 2.0 * jnp.log1p(self.churn))
        inside = (self.least <= ratio) & (ratio <= self.most)
        return jnp.where(inside, jnp.maximum(raised, t), t)


def edm_heun(
    *, churn: float = 0.0, least: float = 0.0, most: float = float("inf"), inflation: float = 1.0
) -> Method:
    """EDM's sampler (Karras et al. 2022, Algorithm 2) for any process of one coordinate; its sigma is sigma / alpha.

    Every step takes two evaluations, the last one included: it usually ends at a positive time, not at zero noise.
    With fewer than about 20 evaluations it is worse than DDIM with as many: the first steps are too long for Heun.

    Args:
        churn: relative increase of sigma / alpha at the start of each step, S_churn over the number of steps.
        least: S_tmin; there is no churn below this sigma / alpha.
        most: S_tmax; there is no churn above this sigma / alpha.
        inflation: S_noise, factor of the noise that churn adds.

    Raises:
        ValueError: if churn is not in [0, sqrt(2) - 1], or least exceeds most.
    """
    if not 0.0 <= churn <= MOST_CHURN:
        raise ValueError(f"churn={churn}: give S_churn / steps, from 0 to sqrt(2) - 1 = 0.4142")
    if least > most:
        raise ValueError(f"least={least} exceeds most={most}: swap them")
    return Method(
        name="EDMHeun",
        scheme=EDMHeun(churn, least, most, inflation),
        dynamics="own",
        order=2,
        cost=Cost(2),
        stochastic=churn > 0.0,
        refuse=one_coordinate("EDMHeun"),
        caution=ruined_on("EDMHeun", ("quadratic", "log_snr"), "use linear or edm"),
    )
