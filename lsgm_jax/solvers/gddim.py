"""gDDIM: an exponential multistep method for processes of two coordinates (Zhang, Tao, Chen 2022).

The probability flow for data at a point x_hat rotates the noise u = L^-1 (z - a x_hat) (S12). A step rotates u and adds
the data again; DDIM is the case without rotation. The change of the data estimate within the step is extrapolated from
earlier steps, and integrated along the rotation (S13).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import Latents, Phase, Scalar, State, Times, expand
from lsgm_jax.processes.linear import Process, expected_data, kernel, perturb, whitened_signal
from lsgm_jax.processes.matrices import Scalars, Vector
from lsgm_jax.solvers.method import Cost, Method, ReverseSolver, Step
from lsgm_jax.solvers.terms import Reverse, times_like


class Estimate(NamedTuple):
    """The data estimate of the network at time t."""

    t: Scalar
    data: Latents


class GDDIM(ReverseSolver):
    """Solves the probability flow as a rotation, with the data estimate extrapolated by a polynomial in t (S13)."""

    degree: int = eqx.field(static=True)  # of the polynomial

    def remember(self, term: Reverse, z: Phase) -> tuple[Estimate, ...]:
        """Returns placeholders for the estimates of past steps, latest first, at distinct times."""
        zero = jnp.zeros_like(z.x)
        return tuple(Estimate(jnp.asarray(2.0 + i, zero.dtype), zero) for i in range(self.degree))

    def advance(
        self, term: Reverse, step: Step, z: Phase, memory: tuple[Estimate, ...]
    ) -> tuple[State, tuple[Estimate, ...]]:
        """Takes one evaluation."""
        process, t, s = term.problem.process, step.t, step.s
        times, eps_hat = times_like(z, t), term.problem.eps(z, t)
        data = expected_data(process, z, eps_hat, times)
        estimates = (Estimate(t, data), *memory)
        angle, weights = rotation(process, s, t, [past.t for past in estimates[:-1]])
        noise = Phase(_position_noise(process, z, data, times), eps_hat)
        noise = _turned(noise, angle)
        for i, (weight, change) in enumerate(zip(weights, _divided_differences(estimates), strict=True)):
            change = jnp.where(step.index > i, change, 0.0)  # the first steps have a lower degree
            noise = Phase(noise.x + weight[0] * change, noise.v + weight[1] * change)
        return perturb(process, data, times_like(z, s), noise), estimates[: self.degree]


def gddim(*, order: int = 2) -> Method:
    """Deterministic gDDIM, with extrapolated data prediction. One step is exact for data at a point.

    The paper extrapolates the rotated noise; the data estimate is closer to a polynomial in time (S13). The first steps
    have a lower order, because there are no earlier estimates.

    Args:
        order: number of predictions in a step, 1 to 3.

    Raises:
        ValueError: if order is not 1, 2 or 3.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order={order} of GDDIM: choose one of 1, 2, 3")
    return Method(
        name="GDDIM",
        scheme=GDDIM(order - 1),
        dynamics="own",
        order=order,
        cost=Cost(1),
        refuse=_only_phases,
        grid="quadratic",
    )


def rotation(process: Process, s: Scalar, t: Scalar, nodes: Sequence[Scalar]) -> tuple[Scalar, list[Vector]]:
    """Returns the angle by which the noise rotates from t back to s < t, and its change with the data (S12, S13).

    Args:
        nodes: times of the estimates, t first.

    Returns:
        The angle, and a vector [k] for each degree d from 1 to the number of nodes: the change of the noise at s if the
        data change by the product of time - nodes[i] over the first d nodes.
    """
    times, steps, inner = _quadrature(s, t)
    noise, signal = kernel(process, times).noise, whitened_signal(process, times)
    pace = process.drift(times)[:, 0, 1] * noise[:, 1, 1] / noise[:, 0, 0] * steps
    turned = jnp.matmul(inner, pace, precision="highest")  # angle from every time back to s
    rate = 0.5 * (process.diffusion(times) / noise[:, 1, 1]) ** 2 * signal[:, 1] * steps
    entering = rate * jnp.stack([-jnp.sin(turned), jnp.cos(turned)])
    weights = []
    for node in nodes:
        entering = entering * (times - node)
        weights.append(jnp.sum(entering, axis=-1))
    return jnp.sum(pace), weights


# Gauss-Legendre quadrature, and the integrals from the start to each of its nodes. The variable is the fourth root of
# time, in which the pace is smooth down to 0: one step from t = 1 to 1e-3 is exact to 1e-9.
_COUNT = 24
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(_COUNT)
_INNER = np.polynomial.legendre.legval(
    _NODES, np.polynomial.legendre.legint(np.eye(_COUNT), lbnd=-1, axis=0)
).T @ np.linalg.inv(np.polynomial.legendre.legvander(_NODES, _COUNT - 1))


def _quadrature(s: Scalar, t: Scalar) -> tuple[Scalars, Scalars, Scalars]:
    """Returns times from s to t, their weights, and the matrix that maps weighted integrands to integrals from s."""
    as_dtype = lambda values: jnp.asarray(values, jnp.result_type(t))
    low, high = jnp.sqrt(jnp.sqrt(s)), jnp.sqrt(jnp.sqrt(t))
    root = low + (high - low) * as_dtype(0.5 * (_NODES + 1.0))
    weights = 2.0 * (high - low) * root**3 * as_dtype(_WEIGHTS)
    return root**4, weights, as_dtype(_INNER / _WEIGHTS)


def _position_noise(process: Process, z: Phase, data: Latents, t: Times) -> Latents:
    """Returns the unit noise of the position of z for given data."""
    signal, noise = kernel(process, t)
    return (z.x - expand(signal[:, 0], z.x) * data) / expand(noise[:, 0, 0], z.x)


def _turned(noise: Phase, angle: Scalar) -> Phase:
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    return Phase(cosine * noise.x - sine * noise.v, sine * noise.x + cosine * noise.v)


def _divided_differences(estimates: Sequence[Estimate]) -> list[Latents]:
    """Returns Newton's coefficients, from degree 1 on, of the polynomial through the estimates."""
    times, row, found = [past.t for past in estimates], [past.data for past in estimates], []
    for gap in range(1, len(times)):
        pairs = zip(itertools.pairwise(row), zip(times, times[gap:], strict=False), strict=True)
        row = [(late - early) / (t_late - t_early) for (late, early), (t_late, t_early) in pairs]
        found.append(row[0])
    return found


def _only_phases(process: Process) -> str | None:
    if len(process.prior_variance()) == 2:
        return None
    return f"solver 'GDDIM' is for processes with a velocity, not for {type(process).__name__}: there it is 'DEIS'"
