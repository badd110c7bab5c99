"""The first step of adaptive solvers, estimated from the vector field at the start (Hairer, Norsett, Wanner, II.4)."""

from typing import Any, NamedTuple, cast

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lsgm_jax.arrays import Scalar
from lsgm_jax.solvers.terms import Time

# A state and whatever is integrated beside it: any pytree of arrays.
Values = PyTree[Array]
EVALUATIONS = 2  # of the vector field: at the start, and after a small Euler step


class FirstStep(NamedTuple):
    """A first step."""

    length: Float[Array, ""]
    rate: Values  # the vector field at the start


def first_step(
    scheme: diffrax.AbstractSolver,
    controller: diffrax.AbstractAdaptiveStepSizeController,
    term: diffrax.AbstractTerm,
    begin: Time,
    end: Time,
    start: Values,
    args: Any,
) -> FirstStep:
    """Estimates the first step from `begin` whose error fits the tolerance of the controller.

    diffrax has the estimate, too, but for plain `ODETerm`s alone, which no term is by the time that it looks.

    Args:
        scheme: the solver; its `error_order` is that of the error of one step, in the step's length.
        controller: its `rtol`, `atol` and `norm` measure values in tolerances.
        start: the values at `begin`.

    Returns:
        A step of at most `end` - `begin`, and the vector field at the start, which the first step needs again.

    Raises:
        ValueError: if the solver does not say the order of its error.
    """
    order, length = scheme.error_order(cast(Any, term)), end - begin
    if order is None:
        raise ValueError(f"{type(scheme).__name__} does not say the order of its error: give a first_step")

    def tolerances(values: Values) -> Scalar:
        scaled = lambda value, y: value / (controller.atol + controller.rtol * jnp.abs(y))
        return jnp.asarray(controller.norm(jax.tree.map(scaled, values, start)))

    def evaluate(point: tuple[Any, Values], _: None) -> tuple[tuple[Any, Values], tuple[Values, Scalar]]:
        rate = term.vf(*point, args)
        trial = jnp.minimum(_trial(tolerances(start), tolerances(rate)), length)
        moved = jax.tree.map(lambda y, f: y + trial * f, start, rate)
        return (begin + trial, moved), (rate, trial)

    # A scan, so that the network is compiled once for both evaluations.
    _, (rates, trials) = jax.lax.scan(evaluate, (begin, start), length=EVALUATIONS)
    rate, trial = jax.tree.map(lambda both: both[0], rates), trials[0]
    bend = tolerances(jax.tree.map(lambda both: both[1] - both[0], rates)) / trial
    estimate = jnp.minimum(_within_tolerance(trial, tolerances(rate), bend, order), length)
    # A vector field that is not finite after the trial says nothing; the solver then finds a shorter step.
    estimate = jnp.where(jnp.isfinite(bend), estimate, trial)
    return FirstStep(jax.lax.stop_gradient(estimate), rate)


def _trial(size: Scalar, speed: Scalar) -> Scalar:
    """Returns a step that changes the values by a hundredth of their size, both measured in tolerances."""
    tiny = (size < 1e-5) | (speed < 1e-5)
    return jnp.where(tiny, 1e-6, 0.01 * size / jnp.where(tiny, 1.0, speed))


def _within_tolerance(trial: Scalar, speed: Scalar, bend: Scalar, order: Any) -> Scalar:
    """Returns the h with h^order max(speed, bend) = 0.01, at most a hundred trials."""
    fastest = jnp.maximum(speed, bend)
    straight = fastest <= 1e-15
    estimate = (0.01 / jnp.where(straight, 1.0, fastest)) ** (1.0 / order)
    estimate = jnp.where(straight, jnp.maximum(1e-6, 1e-3 * trial), estimate)
    return jnp.minimum(100.0 * trial, estimate)
