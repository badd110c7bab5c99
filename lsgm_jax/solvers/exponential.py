"""Exponential multistep methods: what is linear in the flow is solved exactly, predictions are extrapolated (S7, S8).

Predictions at the last few times are interpolated by a polynomial in theta, which is 0 at t and 1 at s. All methods are
the same sum over Newton's divided differences, and differ in what is predicted, in the variable that theta is linear
in, and in the moments: integrals of theta^k against the kernel that the exact solution has.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from lsgm_jax.arrays import Latents
from lsgm_jax.processes.linear import Process
from lsgm_jax.solvers.interval import Interval, between
from lsgm_jax.solvers.method import Cost, Method, ReverseSolver, Step, one_coordinate
from lsgm_jax.solvers.terms import Time, Index, Reverse

Numbers = Sequence[Time]


class History(NamedTuple):
    """Predictions of the steps before the present one, latest first, and how long those steps were."""

    values: tuple[Latents, ...]
    lengths: tuple[Time, ...]

    @classmethod
    def empty(cls, like: Latents, size: int) -> "History":
        """Any finite numbers; the lengths are divided by."""
        return cls((jnp.zeros_like(like),) * size, (jnp.ones((), like.dtype),) * size)

    def after(self, value: Latents, length: Time) -> "History":
        """One step later."""
        if not self.values:
            return self
        return History((value, *self.values[:-1]), (length, *self.lengths[:-1]))

    def nodes(self, length: Time) -> list[Time]:
        """Thetas of the values, for a present step of that length."""
        return [-total / length for total in itertools.accumulate(self.lengths)]


class DEIS(ReverseSolver):
    """Exponential Adams-Bashforth in noise prediction, with theta linear in the root of time (S7)."""

    steps: int = eqx.field(static=True)  # how many predictions it combines

    def remember(self, term: Reverse, z: Latents) -> History:
        """No predictions yet."""
        return History.empty(z, self.steps - 1)

    def advance(self, term: Reverse, step: Step, z: Latents, memory: History) -> tuple[Latents, History]:
        """One evaluation."""
        process, eps_hat = term.problem.process, term.problem.eps(z, step.t)
        interval = between(process, step.s, step.t)
        length = jnp.sqrt(step.t) - jnp.sqrt(step.s)
        moments = _noise_moments(process, step, self.steps)
        rise = _integral(
            moments, [0.0, *memory.nodes(length)], [eps_hat, *memory.values], _known(step.index, self.steps)
        )
        return z / interval.mean + rise, memory.after(eps_hat, length)


class DPMSolverPP(ReverseSolver):
    """Exponential Adams-Bashforth in data prediction, with theta linear in the log of signal to noise (S7)."""

    steps: int = eqx.field(static=True)  # how many predictions it combines

    def remember(self, term: Reverse, z: Latents) -> History:
        """No predictions yet."""
        return History.empty(z, self.steps - 1)

    def advance(self, term: Reverse, step: Step, z: Latents, memory: History) -> tuple[Latents, History]:
        """One evaluation."""
        interval = between(term.problem.process, step.s, step.t)
        data = interval.data(z, term.problem.eps(z, step.t))
        z_s = _extrapolated(interval, z, data, memory, step.index)
        return z_s, memory.after(data, interval.log_snr_gain())


class Predicted(NamedTuple):
    """The last step of UniPC, which is repeated once the prediction at its end is known."""

    start: Latents
    interval: Interval
    history: History


class UniPC(ReverseSolver):
    """DPMSolverPP whose every step but the last is corrected by the evaluation that begins the next one (S8)."""

    steps: int = eqx.field(static=True)  # how many predictions the predictor combines, the corrector one more

    def remember(self, term: Reverse, z: Latents) -> Predicted:
        """Any finite numbers."""
        one = jnp.ones((), z.dtype)
        return Predicted(z, Interval(*(one,) * len(Interval._fields)), History.empty(z, self.steps))

    def advance(self, term: Reverse, step: Step, z: Latents, memory: Predicted) -> tuple[Latents, Predicted]:
        """One evaluation, at the state that was predicted."""
        interval = between(term.problem.process, step.s, step.t)
        data = interval.data(z, term.problem.eps(z, step.t))
        z = jnp.where(step.index == 0, z, _corrected(memory, data, step.index))
        earlier = History(memory.history.values[: self.steps - 1], memory.history.lengths[: self.steps - 1])
        z_s = _extrapolated(interval, z, data, earlier, step.index)
        return z_s, Predicted(z, interval, memory.history.after(data, interval.log_snr_gain()))


def deis(*, order: int = 3) -> Method:
    """DEIS of the multistep kind (Zhang and Chen 2023). Order 1 is DDIM.

    The first steps are of lower order for want of earlier predictions. The first one is Euler's, so that the error of
    order 3 falls quadratically in the end; by how little eps_hat changes while there is hardly any signal, late.

    Args:
        order: predictions that a step combines, 1 to 3.

    Raises:
        ValueError: if order is none of these.
    """
    return _method("DEIS", DEIS, order, (1, 2, 3), order)


def dpm_solver_pp(*, order: int = 2) -> Method:
    """DPM-Solver++ of the multistep kind (Lu et al. 2022b, Algorithm 2, "2M"; "3M" for order 3). Order 1 is DDIM.

    It extrapolates in the logarithm of the signal-to-noise ratio: give it steps that are about equal in that (`LogSNR`,
    `EDM`). The first steps are of lower order, as those of `deis`, and so is a step to no noise at all.

    Args:
        order: predictions that a step combines, 1 to 3.

    Raises:
        ValueError: if order is none of these.
    """
    return _method("DPMSolverPP", DPMSolverPP, order, (1, 2, 3), order)


def unipc(*, order: int = 3) -> Method:
    """UniPC in data prediction, with B(h) = expm1(h) (Zhao et al. 2023, "bh2"). One evaluation per step, no more.

    The state that ends the last step is predicted, not corrected. The corrector adds one to the order at which errors
    fall. Give it steps like those for `dpm_solver_pp`.

    Args:
        order: predictions that the predictor combines, 2 or 3.

    Raises:
        ValueError: if order is none of these.
    """
    return _method("UniPC", UniPC, order, (2, 3), order + 1)


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
    )


def _known(index: Index, size: int) -> list[Bool[Array, ""]]:
    """Whether the present prediction, the one before it, ... have been made when step `index` begins."""
    return [index >= age for age in range(size)]


def _integral(
    moments: Numbers, nodes: Numbers, values: Sequence[Latents], known: Sequence[Bool[Array, ""]]
) -> Latents:
    """Sum of moments of the polynomial through the first of the values that are known (S7)."""
    differences, newton = list(values), [jnp.ones_like(moments[0])]
    total = moments[0] * values[0]
    for degree in range(1, len(values)):
        pairs = zip(differences, differences[1:], nodes, nodes[degree:], strict=False)
        differences = [(later - first) / (b - a) for first, later, a, b in pairs]
        newton = _times(newton, nodes[degree - 1])
        weight = sum(c * moment for c, moment in zip(newton, moments, strict=False))
        total = total + jnp.where(known[degree], weight * differences[0], 0.0)
    return total


def _times(coefficients: Sequence[Time], root: Time) -> list[Time]:
    """Coefficients of a polynomial, lowest first, after multiplication by theta - root."""
    zero = jnp.zeros_like(coefficients[0])
    shifted, scaled = [zero, *coefficients], [*(root * c for c in coefficients), zero]
    return [a - b for a, b in zip(shifted, scaled, strict=True)]


# Gauss and Legendre's rule on [0, 1]. Eight nodes are exact to rounding for exp(h theta) up to h = 6.
_THETAS, _WEIGHTS = (
    (np.polynomial.legendre.leggauss(8)[0] + 1.0) / 2.0,
    np.polynomial.legendre.leggauss(8)[1] / 2.0,
)


def _noise_moments(process: Process, step: Step, size: int) -> list[Time]:
    """alpha_s times the integrals of theta^k d(sigma / alpha) from t to s (S7)."""
    dtype = step.t.dtype
    thetas, weights = jnp.asarray(_THETAS, dtype), jnp.asarray(_WEIGHTS, dtype)
    root_t, root_s = jnp.sqrt(step.t), jnp.sqrt(step.s)
    times = (root_t + (root_s - root_t) * thetas) ** 2
    inner = between(process, jnp.full_like(times, step.s), times)
    left = inner.fall() / inner.mean
    whole = between(process, step.s, step.t)
    higher = [-k * jnp.sum(weights * thetas ** (k - 1) * left) for k in range(1, size)]
    return [-whole.fall() / whole.mean, *higher]


def _data_moments(h: Time, size: int, linear: Bool[Array, ""]) -> list[Time]:
    """H times the integrals of theta^k exp(-h (1 - theta)) over [0, 1] (S7).

    Where the polynomial is `linear` the authors' approximation of the first moment takes its place.
    """
    dtype = h.dtype
    thetas, weights = jnp.asarray(_THETAS, dtype), jnp.asarray(_WEIGHTS, dtype)
    short = jnp.minimum(h, 1.0)
    kernel = weights * short * jnp.exp(-short * (1.0 - thetas))
    moments = [-jnp.expm1(-h)]
    for k in range(1, size):
        recurrence = 1.0 - k / jnp.maximum(h, 1.0) * moments[-1]
        moments.append(jnp.where(h > 1.0, recurrence, jnp.sum(kernel * thetas**k)))
    if size > 1:
        moments[1] = jnp.where(linear, 0.5 * moments[0], moments[1])
    return moments


def _exact_part(interval: Interval, z_t: Latents) -> Latents:
    """sigma_s / sigma_t z_t."""
    return interval.sigma_s / interval.sigma_t * z_t


def _extrapolated(interval: Interval, z_t: Latents, data: Latents, earlier: History, index: Index) -> Latents:
    """The state at s from the prediction at t and earlier ones; from the former alone if s is without noise."""
    size = 1 + len(earlier.values)
    h = interval.log_snr_gain()
    known = [ready & jnp.isfinite(h) for ready in _known(index, size)]
    moments = _data_moments(h, size, ~known[2] if size > 2 else jnp.asarray(True))
    nodes = [0.0, *earlier.nodes(jnp.where(jnp.isfinite(h), h, 1.0))]
    rise = _integral(moments, nodes, [data, *earlier.values], known)
    return _exact_part(interval, z_t) + interval.alpha_s * rise


def _corrected(past: Predicted, data: Latents, index: Index) -> Latents:
    """The state at the end of a past step, with the prediction there taken in."""
    start, *earlier = past.history.values
    h = past.interval.log_snr_gain()
    size = 2 + len(earlier)
    known = [jnp.asarray(True)] * 2 + _known(index, size)[2:]
    moments = _data_moments(h, size, ~known[2] if size > 2 else jnp.asarray(True))
    older = [-total / h for total in itertools.accumulate(past.history.lengths[1:])]
    rise = _integral(moments, [0.0, 1.0, *older], [start, data, *earlier], known)
    return _exact_part(past.interval, past.start) + past.interval.alpha_s * rise
