"""The symmetric splitting sampler of critically-damped Langevin diffusion (Dockhorn, Vahdat, Kreis 2022, section 3.3)."""

from typing import Any

import jax.numpy as jnp

from lsgm_jax.arrays import Phase
from lsgm_jax.diffusions.cld import CLD
from lsgm_jax.diffusions.linear import move, score_of_eps, sigma
from lsgm_jax.diffusions.matrices import Scalars
from lsgm_jax.solvers.method import ReverseSolver, Step
from lsgm_jax.solvers.terms import Clock, Problem, Reverse, times_like


class SSCS(ReverseSolver):
    """A step of the reverse SDE in three: half a step without score, the score's kick, half a step without score (S10).

    Attributes:
        evaluations: of the network per step. 1: as published, of weak order 1: the kick is Euler's and has, like both
            half steps, the coefficients of where the step starts. 2: of weak order 2 (S11), with the kick at the
            middle of the step and each half step where it belongs.
    """

    evaluations: int = 1

    def advance(self, term: Reverse, step: Step, z: Phase, memory: Any) -> tuple[Phase, Any]:
        """Half step, kick, half step."""
        problem, (index, t, s) = term.problem, step
        middle, h = 0.5 * (t + s), t - s
        halves = [problem.noise.draw(index, part, z) for part in (0, 1)]
        z = half_step(problem.process, z, t, middle, halves[0])
        if self.evaluations == 1:
            return half_step(problem.process, kick(problem, z, t, h), t, middle, halves[1]), None
        return half_step(problem.process, relaxing_kick(problem, z, middle, h), middle, s, halves[1]), None


def half_step(process: CLD, z: Phase, t: Clock, s: Clock, eps: Phase) -> Phase:
    """From t back to s < t without the score, exactly: the oscillator itself, with the velocity mirrored (S10).

    Args:
        eps: unit noise.
    """
    s, t = times_like(z, s), times_like(z, t)
    return _mirror(move(process, _mirror(z), s, t, _mirror(eps)))


def kick(problem: Problem, z: Phase, t: Clock, h: Clock) -> Phase:
    """Euler's step of length h of the velocity by the score at time t: by how much it differs from the prior's (S10)."""
    return Phase(z.x, z.v + h * _force(problem, z, t))


def relaxing_kick(problem: Problem, z: Phase, t: Clock, h: Clock) -> Phase:
    """Second-order step, exact while the expected data does not change, in two evaluations (S11)."""
    process = problem.process
    rate = process.diffusion(t) ** 2 * (1.0 / process.mass - 1.0 / sigma(process, t) ** 2)
    phi_1, phi_2 = _phi(h * rate)
    force = _force(problem, z, t)
    predicted = Phase(z.x, z.v + h * phi_1 * force)
    change = _force(problem, predicted, t) - force - rate * (predicted.v - z.v)
    return Phase(z.x, predicted.v + h * phi_2 * change)


def _force(problem: Problem, z: Phase, t: Clock) -> Phase:
    """g^2 (score + v / M)."""
    process = problem.process
    score = score_of_eps(process, problem.eps(z, t), times_like(z, t))
    return process.diffusion(t) ** 2 * (score + z.v / process.mass)


def _mirror(z: Phase) -> Phase:
    return Phase(z.x, -z.v)


def _phi(r: Scalars) -> tuple[Scalars, Scalars]:
    """(e^r - 1) / r and (e^r - 1 - r) / r^2."""
    near = jnp.abs(r) < 0.1
    safe = jnp.where(near, 1.0, r)
    series = 0.5 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r / 5040))))
    phi_2 = jnp.where(near, series, (jnp.expm1(safe) - safe) / safe**2)
    return 1.0 + r * phi_2, phi_2
