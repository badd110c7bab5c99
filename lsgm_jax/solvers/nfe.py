"""Exact numbers of network evaluations (NFE) of a solve; diffrax reports steps, not evaluations."""

from typing import Any, NamedTuple, cast

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsgm_jax.solvers.method import Cost


class EarlyRejections(NamedTuple):
    """State of `CountingController`."""

    inner: Any
    early: Int[Array, ""]  # rejections before the first acceptance
    accepted: Array  # whether a step has been accepted


class CountingController(diffrax.AbstractAdaptiveStepSizeController):
    """A controller of adaptive steps that also counts the rejections before the first accepted step.

    It brings the length of the first step. diffrax would check a length that it is given by a callback to the host, for
    which no accelerator waits gladly, and with which JAX keeps no program in its compilation cache.
    """

    rtol: Any
    atol: Any
    norm: Any
    inner: diffrax.AbstractAdaptiveStepSizeController
    first: Float[Array, ""]  # length of the first step

    @classmethod
    def around(
        cls, inner: diffrax.AbstractAdaptiveStepSizeController, first: Float[Array, ""]
    ) -> "CountingController":
        """Returns the counting controller that steps as `inner` does; implicit solvers read its tolerances, too."""
        return cls(rtol=inner.rtol, atol=inner.atol, norm=inner.norm, inner=inner, first=first)

    def wrap(self, direction: Any) -> "CountingController":
        """Tells the controller the direction of time."""
        return CountingController.around(cast(Any, self.inner.wrap(direction)), self.first)

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, args: Any, func: Any, error_order: Any
    ) -> tuple[Any, Any]:
        """Initialises controller and count."""
        end_of_step, inner = self.inner.init(terms, t0, t1, y0, self.first, args, func, error_order)
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
        controller_state: Any,
    ) -> tuple[Any, ...]:
        """Accepts or rejects the step, and counts early rejections."""
        state = controller_state
        keep, next_t0, next_t1, made_jump, inner, result = self.inner.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state.inner
        )
        early = jnp.asarray(~keep & ~state.accepted, jnp.int32)
        state = EarlyRejections(inner, state.early + early, state.accepted | keep)
        return keep, next_t0, next_t1, made_jump, state, result


class Count(NamedTuple):
    """Numbers of network evaluations of a batch of vmapped solves."""

    batch: Int[Array, ""]  # evaluations on the batch
    single: Int[Array, "batch"]  # evaluations that each sample needs alone


def evaluations(cost: Cost, num_steps: Int[Array, "batch"], early: Int[Array, "batch"]) -> Count:
    """Returns the numbers of evaluations for the attempted steps and the early rejections of each sample.

    The batch runs in lockstep: it takes as many steps as its slowest sample, and the extra evaluation as long as any
    sample has no accepted step.
    """
    batch = cost.per_step * jnp.max(num_steps) + cost.first * (1 + jnp.max(early)) + cost.extra
    return Count(batch, cost.per_step * num_steps + cost.first * (1 + early) + cost.extra)
