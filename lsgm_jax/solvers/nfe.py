"""How often a solve evaluated the vector field, exactly; diffrax reports steps, not evaluations.

An FSAL method reuses the last stage of an accepted step as the first of the next. So it pays one evaluation extra at
the start, and again after every rejection that comes before the first acceptance, when there is nothing to reuse.
"""

from typing import Any, NamedTuple

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Int

# Evaluations per attempted step, and evaluations that FSAL methods pay while no step has been accepted yet.
EVALUATIONS = {
    "Euler": (1, 0),
    "Heun": (2, 0),
    "Midpoint": (2, 0),
    "Ralston": (2, 0),
    "Bosh3": (3, 1),
    "Tsit5": (6, 1),
    "Dopri5": (6, 1),
    "Dopri8": (13, 1),
}


class EarlyRejections(NamedTuple):
    """State of `CountingController`."""

    inner: Any
    early: Int[Array, ""]  # rejections before the first acceptance
    accepted: Array  # whether a step has been accepted


class CountingController(diffrax.AbstractStepSizeController):
    """Another controller, plus a count of the rejections before the first accepted step."""

    controller: diffrax.AbstractStepSizeController

    def wrap(self, direction: Any) -> "CountingController":
        """Hands the direction of integration on."""
        return CountingController(self.controller.wrap(direction))

    def init(self, *args: Any, **kwargs: Any) -> tuple[Any, EarlyRejections]:
        """Starts the inner controller and the count."""
        end_of_step, inner = self.controller.init(*args, **kwargs)
        return end_of_step, EarlyRejections(inner, jnp.zeros((), jnp.int32), jnp.zeros((), bool))

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: EarlyRejections,
    ) -> tuple[Any, ...]:
        """Decides as the inner controller does."""
        state = controller_state
        keep, next_t0, next_t1, made_jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state.inner
        )
        early = jnp.asarray(~keep & ~state.accepted, jnp.int32)
        state = EarlyRejections(inner, state.early + early, state.accepted | keep)
        return keep, next_t0, next_t1, made_jump, state, result


class Count(NamedTuple):
    """Evaluations of a batch of vmapped solves."""

    batch: Int[Array, ""]  # calls of the network on the whole batch
    single: Int[Array, "batch"]  # calls that each sample alone would have needed


def evaluations(name: str, num_steps: Int[Array, "batch"], early: Int[Array, "batch"]) -> Count:
    """Counts from attempted steps and early rejections per sample.

    The batch runs in lockstep: as many steps as its slowest sample, and the extra evaluation as long as any
    sample has no accepted step.
    """
    per_step, first = EVALUATIONS[name]
    batch = per_step * jnp.max(num_steps) + first * (1 + jnp.max(early))
    return Count(batch, per_step * num_steps + first * (1 + early))
