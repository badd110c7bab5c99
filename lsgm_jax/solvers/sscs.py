"""The symmetric splitting sampler of critically-damped Langevin diffusion (Dockhorn, Vahdat, Kreis 2022, 3.3)."""

from typing import Any, cast

import equinox as eqx

from lsgm_jax.arrays import Latents, Phase, Scalar
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.linear import Process, move, score_of_eps
from lsgm_jax.solvers.method import Cost, Method, ReverseSolver, Step
from lsgm_jax.solvers.terms import Problem, Reverse, times_like


class SSCS(ReverseSolver):
    """Splits a step of the reverse SDE in three: half a step without the score, its kick, half a step (S10)."""

    evaluations: int = eqx.field(static=True)  # of the network per step: 1 as published, 2 for weak order 2

    def advance(self, term: Reverse, step: Step, z: Phase, memory: Any) -> tuple[Phase, Any]:
        """Takes half a step, the kick, and half a step."""
        problem, t, s = term.problem, step.t, step.s
        process, middle = problem.process, 0.5 * (t + s)
        first, second = (cast(Phase, problem.noise.draw(step.index, part, z)) for part in (0, 1))
        z = half_step(process, z, t, middle, first)
        if self.evaluations == 1:  # as published: all coefficients at the start of the step
            return half_step(process, euler_kick(problem, z, t, t - s), t, middle, second), None
        return half_step(process, heun_kick(problem, z, middle, t - s), middle, s, second), None


def sscs(*, order: int = 1) -> Method:
    """SSCS (Dockhorn, Vahdat, Kreis 2022, Algorithm 1): the solver of CLD's reverse SDE.

    Args:
        order: weak order. 1: as published, with one evaluation per step. 2: with two evaluations per step, which is
            more accurate at equal cost from about 30 evaluations on (S11).

    Raises:
        ValueError: if order is not 1 or 2.
    """
    if order not in (1, 2):
        raise ValueError(f"order={order} of SSCS: choose one of 1, 2")
    return Method(
        name="SSCS",
        scheme=SSCS(order),
        dynamics="own",
        order=order,
        cost=Cost(order),
        stochastic=True,
        refuse=_only_cld,
        grid="quadratic",
    )


def half_step(process: Process, z: Phase, t: Scalar, s: Scalar, eps: Phase) -> Phase:
    """Integrates from t to s < t without the score, exactly: by CLD itself with the velocity mirrored (S10).

    Args:
        eps: unit noise.
    """
    s, t = times_like(z, s), times_like(z, t)
    return _mirror(cast(Phase, move(process, _mirror(z), s, t, _mirror(eps))))


def euler_kick(problem: Problem, z: Phase, t: Scalar, length: Scalar) -> Phase:
    """Applies the force of the score at time t to the velocity during `length`, to first order (S10)."""
    return Phase(z.x, z.v + length * _force(problem, z, t))


def heun_kick(problem: Problem, z: Phase, t: Scalar, length: Scalar) -> Phase:
    """Applies the force of the score to second order, with two evaluations (S11)."""
    force = _force(problem, z, t)
    again = _force(problem, Phase(z.x, z.v + length * force), t)
    return Phase(z.x, z.v + 0.5 * length * (force + again))


def _force(problem: Problem, z: Phase, t: Scalar) -> Latents:
    """Returns g^2 (score + v / M), the difference of the score to that of the prior, times g^2."""
    process = problem.process
    score = score_of_eps(process, problem.eps(z, t), times_like(z, t))
    return process.diffusion(t) ** 2 * (score + z.v / process.prior_variance()[-1])


def _mirror(z: Phase) -> Phase:
    return Phase(z.x, -z.v)


def _only_cld(process: Process) -> str | None:
    if isinstance(process, CLD):
        return None
    return (
        f"solver 'SSCS' is for CLD, not for {type(process).__name__}: "
        "use EulerMaruyama, Ancestral, PredictorCorrector or an ODE solver"
    )
