"""Integrals of interpolating polynomials against the exact solution of the linear part, by moments (S7)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from lsgm_jax.arrays import Latents, Scalar
from lsgm_jax.processes.linear import Process
from lsgm_jax.solvers.interval import between
from lsgm_jax.solvers.method import Step

Nodes = Sequence[Scalar | float]
Known = list[Bool[Array, ""]]  # whether the present prediction, the one before it, ... enter a step


def integral(moments: Sequence[Scalar], nodes: Nodes, values: Sequence[Latents], known: Known) -> Latents:
    """Returns the integral of the polynomial through the known values, as a sum of moments (S7)."""
    differences, newton = list(values), [jnp.ones_like(moments[0])]
    total = moments[0] * values[0]
    for degree in range(1, len(values)):
        pairs = zip(differences, differences[1:], nodes, nodes[degree:], strict=False)
        differences = [(later - first) / (b - a) for first, later, a, b in pairs]
        newton = _times(newton, nodes[degree - 1])
        weight = sum(c * moment for c, moment in zip(newton, moments, strict=False))
        total = total + jnp.where(known[degree], weight * differences[0], 0.0)
    return total


def _times(coefficients: Sequence[Scalar], root: Scalar | float) -> list[Scalar]:
    """Multiplies a polynomial by theta - root; coefficients are in order of increasing degree."""
    zero = jnp.zeros_like(coefficients[0])
    shifted, scaled = [zero, *coefficients], [*(root * c for c in coefficients), zero]
    return [a - b for a, b in zip(shifted, scaled, strict=True)]


# Gauss-Legendre quadrature on [0, 1]. Eight nodes are exact to rounding for exp(h theta) up to h = 6.
_THETAS, _WEIGHTS = (
    (np.polynomial.legendre.leggauss(8)[0] + 1.0) / 2.0,
    np.polynomial.legendre.leggauss(8)[1] / 2.0,
)


def noise_moments(process: Process, step: Step, size: int) -> list[Scalar]:
    """Returns alpha_s times the integrals of theta^k d(sigma / alpha) from t to s (S7)."""
    dtype = step.t.dtype
    thetas, weights = jnp.asarray(_THETAS, dtype), jnp.asarray(_WEIGHTS, dtype)
    root_t, root_s = jnp.sqrt(step.t), jnp.sqrt(step.s)
    times = (root_t + (root_s - root_t) * thetas) ** 2
    inner = between(process, jnp.full_like(times, step.s), times)
    left = inner.fall() / inner.mean
    whole = between(process, step.s, step.t)
    higher = [-k * jnp.sum(weights * thetas ** (k - 1) * left) for k in range(1, size)]
    return [-whole.fall() / whole.mean, *higher]


def data_moments(h: Scalar, known: Known) -> list[Scalar]:
    """Returns h times the integrals of theta^k exp(-h (1 - theta)) over [0, 1] (S7).

    Where the polynomial is linear, with no more than two known values, the first moment is the authors' approximation.
    """
    size, dtype = len(known), h.dtype
    linear = ~known[2] if size > 2 else jnp.asarray(True)
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
