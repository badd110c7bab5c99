"""Exponential multistep methods: DEIS, DPM-Solver++ and UniPC (S7, S8).

The linear part of the probability flow is solved exactly, and predictions are extrapolated. A polynomial in theta,
which is 0 at t and 1 at s, interpolates the predictions at the last few times. All methods are the same sum over
Newton's divided differences. They differ in the predicted quantity, in the variable in which theta is linear, and in
the moments: the integrals of theta^k against the kernel of the exact solution.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp

from lsgm_jax.arrays import Latents, Scalar
from lsgm_jax.solvers.interval import Interval, between
from lsgm_jax.solvers.method import (
    Caution,
    Cost,
    Method,
    ReverseSolver,
    Step,
    one_coordinate,
    ruined_on,
)
from lsgm_jax.solvers.moments import Known, data_moments, integral, noise_moments
from lsgm_jax.solvers.terms import Index, Reverse


class History(NamedTuple):
    """Predictions of the previous steps, latest first, and the lengths of those steps."""

    values: tuple[Latents, ...]
    lengths: tuple[Scalar, ...]

    @classmethod
    def empty(cls, like: Latents, size: int) -> "History":
        """Returns placeholders: zeros as values, and ones as lengths, because they are divided by."""
        return cls((jnp.zeros_like(like),) * size, (jnp.ones((), like.dtype),) * size)

    def after(self, value: Latents, length: Scalar) -> "History":
        """Returns the history after a step with this prediction and length."""
        if not self.values:
            return self
        return History((value, *self.values[:-1]), (length, *self.lengths[:-1]))

    def nodes(self, length: Scalar) -> list[Scalar]:
        """Returns theta at each value, for a present step of this length."""
        return [-total / length for total in itertools.accumulate(self.lengths)]


class AdamsBashforth(ReverseSolver):
    """Base of the methods that combine the present prediction with previous ones."""

    steps: int = eqx.field(static=True)  # number of predictions in the combination

    def remember(self, term: Reverse, z: Latents) -> History:
        """Returns an empty history."""
        return History.empty(z, self.steps - 1)


class DEIS(AdamsBashforth):
    """Exponential Adams-Bashforth in noise prediction, with theta linear in the root of time (S7)."""

    def advance(self, term: Reverse, step: Step, z: Latents, memory: History) -> tuple[Latents, History]:
        """Takes one evaluation."""
        process, eps_hat = term.problem.process, term.problem.eps(z, step.t)
        interval = between(process, step.s, step.t)
        length = jnp.sqrt(step.t) - jnp.sqrt(step.s)
        moments = noise_moments(process, step, self.steps)
        rise = integral(
            moments, [0.0, *memory.nodes(length)], [eps_hat, *memory.values], _known(step.index, self.steps)
        )
        return z / interval.mean + rise, memory.after(eps_hat, length)


class DPMSolverPP(AdamsBashforth):
    """Exponential Adams-Bashforth in data prediction, with theta linear in the log signal-to-noise ratio (S7)."""

    curvature: float = eqx.field(static=True)  # factor of the quadratic term; 1 integrates it exactly
    lower_order_final: bool = eqx.field(static=True)

    def advance(self, term: Reverse, step: Step, z: Latents, memory: History) -> tuple[Latents, History]:
        """Takes one evaluation."""
        interval = between(term.problem.process, step.s, step.t)
        data = interval.data(z, term.problem.eps(z, step.t))
        known = _used(step, self.steps, self.lower_order_final)
        z_s = _extrapolated(interval, z, data, memory, known, self.curvature)
        return z_s, memory.after(data, interval.log_snr_gain())


class Predicted(NamedTuple):
    """The previous step of UniPC, which is repeated with the prediction at its end."""

    start: Latents
    interval: Interval
    history: History


class UniPC(ReverseSolver):
    """DPMSolverPP with a corrector: the first evaluation of a step corrects the step before it (S8)."""

    steps: int = eqx.field(static=True)  # predictions of the predictor; the corrector has one more
    lower_order_final: bool = eqx.field(static=True)

    def remember(self, term: Reverse, z: Latents) -> Predicted:
        """Returns placeholders, finite and positive."""
        one = jnp.ones((), z.dtype)
        return Predicted(z, Interval(*(one,) * len(Interval._fields)), History.empty(z, self.steps))

    def advance(self, term: Reverse, step: Step, z: Latents, memory: Predicted) -> tuple[Latents, Predicted]:
        """Takes one evaluation, at the predicted state."""
        interval = between(term.problem.process, step.s, step.t)
        data = interval.data(z, term.problem.eps(z, step.t))
        known = _used(step, self.steps, self.lower_order_final, ago=1)
        z = jnp.where(step.index == 0, z, _corrected(memory, data, known))
        earlier = History(memory.history.values[: self.steps - 1], memory.history.lengths[: self.steps - 1])
        known = _used(step, self.steps, self.lower_order_final)
        z_s = _extrapolated(interval, z, data, earlier, known)
        return z_s, Predicted(z, interval, memory.history.after(data, interval.log_snr_gain()))


def deis(*, order: int = 3) -> Method:
    """Multistep DEIS (Zhang and Chen 2023). Order 1 is DDIM.

    The first steps have a lower order, because there are no previous predictions. The first one is Euler's, so for very
    many steps the error of order 3 falls quadratically. This shows late, because eps_hat hardly changes near t = 1.

    Args:
        order: number of predictions in a step, 1 to 3.

    Raises:
        ValueError: if order is not 1, 2 or 3.
    """
    return _method("DEIS", DEIS, order, (1, 2, 3), order)


def dpm_solver_pp(*, order: int = 2, third: str = "published", lower_order_final: bool = True) -> Method:
    """Multistep DPM-Solver++ (Lu et al. 2022b, Algorithm 2, "2M"; "3M" for order 3). Order 1 is DDIM.

    It extrapolates in the log signal-to-noise ratio. The first steps have a lower order, as for `deis`, and so has a
    step to zero noise.

    Args:
        order: number of predictions in a step, 1 to 3.
        third: the quadratic term of order 3. "published": the authors' 3M, which takes half of it, so that the error
            falls as that of order 2; better with few steps. "exact": the integral of the polynomial; better from about
            100 steps on, without `lower_order_final`.
        lower_order_final: the last step has order 1, and the one before it at most order 2. The last steps of most
            grids are long in the log signal-to-noise ratio: there, extrapolation fails (see `docs/results.md`). The
            error then falls as that of order 2 at best.

    Raises:
        ValueError: if order is not 1, 2 or 3, or `third` is unknown.
    """
    if third not in CURVATURES:
        raise ValueError(f"third={third!r} is none of {', '.join(CURVATURES)}")
    scheme = lambda steps: DPMSolverPP(steps, CURVATURES[third], lower_order_final)
    falls = lower_order_final or third == "published"
    method = _method("DPMSolverPP", scheme, order, (1, 2, 3), min(order, 2) if falls else order)
    return dataclasses.replace(method, caution=_ruined("DPMSolverPP", order, lower_order_final))


CURVATURES = {"published": 0.5, "exact": 1.0}


def unipc(*, order: int = 2, lower_order_final: bool = True) -> Method:
    """UniPC in data prediction, with B(h) = expm1(h) (Zhao et al. 2023, "bh2"), at one evaluation per step.

    The corrector raises the order of convergence by one. The last step is not corrected.

    Args:
        order: number of predictions in a step of the predictor: 2, as in diffusers, or 3, which is better from about 30
            steps on.
        lower_order_final: as for `dpm_solver_pp`.

    Raises:
        ValueError: if order is not 2 or 3.
    """
    scheme = lambda steps: UniPC(steps, lower_order_final)
    method = _method("UniPC", scheme, order, (2, 3), 2 if lower_order_final else order + 1)
    return dataclasses.replace(method, caution=_ruined("UniPC", order, lower_order_final))


def _method(
    name: str, scheme: Callable[[int], ReverseSolver], steps: int, allowed: Sequence[int], order: int
) -> Method:
    if steps not in allowed:
        raise ValueError(f"order={steps} of {name}: choose one of {', '.join(map(str, allowed))}")
    return Method(
        name=name,
        scheme=scheme(steps),
        dynamics="own",
        order=order,
        cost=Cost(1),
        refuse=one_coordinate(name),
        grid="quadratic",
    )


def _ruined(name: str, order: int, lower_order_final: bool) -> Caution:
    """Returns the caution: long last steps ruin high orders, those of `edm` even if the order falls."""
    if lower_order_final:
        return ruined_on(name, ("edm",) if order == 3 else (), "use quadratic")
    long = ("linear", "edm", "quadratic") if order == 3 else ("linear", "edm") if order == 2 else ()
    return ruined_on(f"{name} without lower_order_final", long, "set it to True, or use log_snr")


def _known(index: Index, size: int) -> Known:
    """Returns whether the present prediction, the one before it, ... exist in step `index`."""
    return [index >= age for age in range(size)]


def _used(step: Step, size: int, lower_order_final: bool, ago: int = 0) -> Known:
    """Returns which predictions a step uses: no more than there are, nor, if the order falls, than steps remain.

    Args:
        ago: 1 for the step before `step`.
    """
    known = _known(step.index - ago, size)
    if not lower_order_final or step.remaining is None:
        return known
    return [exists & (age < step.remaining + ago) for age, exists in enumerate(known)]


def _exact_part(interval: Interval, z_t: Latents) -> Latents:
    """Returns sigma_s / sigma_t z_t, the part of z_s without the prediction."""
    return interval.sigma_s / interval.sigma_t * z_t


def _extrapolated(
    interval: Interval, z_t: Latents, data: Latents, earlier: History, known: Known, curvature: float = 1.0
) -> Latents:
    """Returns z_s from the prediction at t and earlier ones; from the prediction at t alone if s has no noise."""
    h = interval.log_snr_gain()
    known = [ready & jnp.isfinite(h) for ready in known]
    moments = data_moments(h, known)
    moments[2:] = [curvature * moment for moment in moments[2:]]
    nodes = [0.0, *earlier.nodes(jnp.where(jnp.isfinite(h), h, 1.0))]
    rise = integral(moments, nodes, [data, *earlier.values], known)
    return _exact_part(interval, z_t) + interval.alpha_s * rise


def _corrected(past: Predicted, data: Latents, used: Known) -> Latents:
    """Returns the state at the end of a past step, corrected by the prediction there.

    Args:
        used: the predictions that the past step used.
    """
    start, *earlier = past.history.values
    h = past.interval.log_snr_gain()
    known = [jnp.asarray(True)] * 2 + used[1:]
    moments = data_moments(h, known)
    older = [-total / h for total in itertools.accumulate(past.history.lengths[1:])]
    rise = integral(moments, [0.0, 1.0, *older], [start, data, *earlier], known)
    return _exact_part(past.interval, past.start) + past.interval.alpha_s * rise
