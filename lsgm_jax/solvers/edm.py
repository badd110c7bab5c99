"""Heun's method in sigma / alpha with renewed noise (Karras et al. 2022)."""

import equinox as eqx
import jax.numpy as jnp

from lsgm_jax.arrays import Latents
from lsgm_jax.processes.linear import Process, log_snr
from lsgm_jax.solvers.grids import time_of_log_snr
from lsgm_jax.solvers.interval import between
from lsgm_jax.solvers.method import Cost, Method, ReverseSolver, Step, one_coordinate
from lsgm_jax.solvers.terms import Time, Reverse

MOST_CHURN = 2.0**0.5 - 1.0  # never more new noise than there is


class EDMHeun(ReverseSolver):
    """A step up in noise by chance, then one of Heun's down (S9)."""

    churn: float = eqx.field(static=True)
    least: float = eqx.field(static=True)
    most: float = eqx.field(static=True)
    inflation: float = eqx.field(static=True)

    def advance(self, term: Reverse, step: Step, z: Latents, memory: None) -> tuple[Latents, None]:
        """Two evaluations, at both ends of the step down."""
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

    def _raised(self, process: Process, t: Time) -> Time:
        """When sigma / alpha is larger by the share `churn`, and 1 at the latest."""
        present = log_snr(process, t)
        ratio = jnp.exp(-0.5 * present)
        raised = time_of_log_snr(process, present - 2.0 * jnp.log1p(self.churn))
        inside = (self.least <= ratio) & (ratio <= self.most)
        return jnp.where(inside, jnp.maximum(raised, t), t)


def edm_heun(
    *, churn: float = 0.0, least: float = 0.0, most: float = float("inf"), inflation: float = 1.0
) -> Method:
    """Karras et al. 2022, Algorithm 2, for any process of one coordinate; sigma there is sigma / alpha here.

    The last step has two evaluations like all others; it ends at a positive time, as a rule, and not at noise zero.

    Args:
        churn: share by which each step first raises sigma / alpha: S_churn over the number of steps.
        least, most: S_tmin and S_tmax, between which sigma / alpha has to be for that.
        inflation: S_noise, factor of the noise that is added.

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
    )
