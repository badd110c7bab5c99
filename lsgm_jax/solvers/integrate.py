"""Integration by diffrax, with fixed steps, or with adaptive steps per sample or per batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from lsgm_jax.solvers.first_step import EVALUATIONS, first_step
from lsgm_jax.solvers.grids import Nodes
from lsgm_jax.solvers.method import Cost, Method
from lsgm_jax.solvers.nfe import Count, CountingController, EarlyRejections, evaluations
from lsgm_jax.solvers.terms import Time

# The integrated variables (a state; for likelihoods a state and the integral of the divergence), or the arguments of a
# vector field: arrays [batch, ...] each.
BatchTree = PyTree[Array]
SavedTimes = Float[Array, "saved"]
Norm = Callable[[BatchTree], Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Adaptive steps, by the error estimate of the solver and diffrax's `PIDController`.

    A subclass may return a controller of its own; its import path is then the name of the steps in a config.

    Attributes:
        rtol: relative tolerance.
        atol: absolute tolerance.
        per: the error that sets the step size. "sample": each sample has its own steps; the network still runs on the
            full batch, as often as the slowest sample needs. "batch": one step size for all, by the mean square error
            over the batch, as in the original code; a sample with a large error can go unnoticed. "hardest": one step
            size for all, by the largest error of a sample.
        max_steps: maximum number of attempted steps; a solve that needs more fails.
        pcoeff: proportional coefficient of the controller, on the error of the step before.
        icoeff: integral coefficient of the controller, on the error of the present step.
        dcoeff: derivative coefficient of the controller.
        first_step: length of the first step in time; None for an estimate, which takes two evaluations.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    per: str = "sample"
    max_steps: int = 4096
    # By measurement (docs/controllers.md). More gain (0, 1) lengthens steps so fast that many are rejected.
    pcoeff: float = 0.2
    icoeff: float = 0.4
    dcoeff: float = 0.0
    first_step: float | None = None

    def __post_init__(self):
        if not self.pcoeff + self.icoeff + self.dcoeff > 0.0:
            raise ValueError(
                f"pcoeff={self.pcoeff}, icoeff={self.icoeff}, dcoeff={self.dcoeff}: their sum must be positive, "
                "or steps would not shrink after a large error"
            )
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol={self.rtol}, atol={self.atol}: tolerances must be positive")
        if self.per not in ("sample", "batch", "hardest"):
            raise ValueError(f"per={self.per!r} is none of sample, batch, hardest")
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps}: give a positive number")
        if self.first_step is not None and not 0.0 < self.first_step <= 1.0:
            raise ValueError(
                f"first_step={self.first_step}: give a length of time in (0, 1], or None to estimate it"
            )

    def controller(self, norm: Norm) -> diffrax.AbstractAdaptiveStepSizeController:
        """Returns the controller of step sizes.

        Args:
            norm: of errors, by `per`.
        """
        return diffrax.PIDController(
            rtol=self.rtol,
            atol=self.atol,
            norm=norm,
            pcoeff=self.pcoeff,
            icoeff=self.icoeff,
            dcoeff=self.dcoeff,
        )


class Integral(NamedTuple):
    """Result of a solve: the final values, the number of evaluations, and the values at the saved times."""

    end: BatchTree
    evaluations: Count
    success: Bool[Array, "batch"]
    saved: BatchTree  # [times, batch, ...] each; None without times to save


def _for_one_sample(term: diffrax.ODETerm) -> diffrax.ODETerm:
    """Returns the term of a single sample for a term of batches."""

    def vector_field(t: Time, y: BatchTree, args: BatchTree) -> BatchTree:
        batch = jax.tree.map(lambda v: v[None], (y, args))
        return jax.tree.map(lambda v: v[0], term.vf(t, *batch))

    return diffrax.ODETerm(vector_field)


def integrate_adaptively(
    method: Method,
    steps: Adaptive,
    term: diffrax.ODETerm,
    start: BatchTree,
    begin: float,
    end: float,
    args: BatchTree = None,
    keep: SavedTimes | None = None,
) -> Integral:
    """Integrates `term` from `begin` to `end` > `begin`.

    Args:
        start: initial values of the batch.
        args: arguments of the vector field, [batch, ...] each.
        keep: increasing times at which values are saved, by the interpolation of the solver. They do not change the
            steps. Values at times that a failed solve did not reach are infinite.
    """
    dtype = jax.tree.leaves(start)[0].dtype
    norm = _hardest if steps.per == "hardest" else _rms
    controller = steps.controller(norm)
    cost, begin_at, end_at = method.cost, jnp.asarray(begin, dtype), jnp.asarray(end, dtype)
    if steps.first_step is None:
        cost = Cost(cost.per_step, extra=cost.extra + EVALUATIONS)

    def solve(term: diffrax.ODETerm, start: BatchTree, args: BatchTree) -> diffrax.Solution:
        length, state = _first(method, steps, controller, term, begin_at, end_at, start, args)
        return diffrax.diffeqsolve(
            term,
            method.scheme,
            begin_at,
            end_at,
            None,
            start,
            args,
            solver_state=state,
            stepsize_controller=CountingController.around(controller, length),
            max_steps=steps.max_steps,
            throw=False,
            saveat=diffrax.SaveAt(subs=_save_at(keep, begin, end), controller_state=True),
        )

    if steps.per == "sample":
        solution = jax.vmap(lambda start, args: solve(_for_one_sample(term), start, args))(start, args)
        values = cast(dict[str, BatchTree], solution.ys)
        final = jax.tree.map(lambda path: path[:, -1], values["end"])
        saved = jax.tree.map(lambda path: jnp.swapaxes(path, 0, 1), values.get("saved"))
    else:
        solution = solve(term, start, args)
        values = cast(dict[str, BatchTree], solution.ys)
        final, saved = _last(values["end"]), values.get("saved")
    batch = len(jax.tree.leaves(start)[0])
    early = cast(EarlyRejections, solution.controller_state).early
    each = (jnp.broadcast_to(count, (batch,)) for count in (solution.stats["num_steps"], early))
    success = jnp.broadcast_to(solution.result == diffrax.RESULTS.successful, (batch,))
    return Integral(final, evaluations(cost, *each), success, saved)


def _first(
    method: Method,
    steps: Adaptive,
    controller: diffrax.AbstractAdaptiveStepSizeController,
    term: diffrax.ODETerm,
    begin: Float[Array, ""],
    end: Float[Array, ""],
    start: BatchTree,
    args: BatchTree,
) -> tuple[Float[Array, ""], Any]:
    """Returns the length of the first step, and the state in which the solver starts; None for the solver's own."""
    if steps.first_step is not None:
        return jnp.minimum(jnp.asarray(steps.first_step, begin.dtype), end - begin), None
    estimate = first_step(method.scheme, controller, term, begin, end, start, args)
    if not method.cost.first:
        return estimate.length, None
    # FSAL solvers keep whether the vector field at the start of the step is missing, and that vector field.
    missing, _ = method.scheme.init(term, begin, begin + estimate.length, start, args)
    return estimate.length, (jnp.zeros_like(missing), estimate.rate)


def integrate_on(
    method: Method,
    nodes: Nodes,
    terms: diffrax.AbstractTerm,
    start: BatchTree,
    args: BatchTree = None,
    keep: SavedTimes | None = None,
) -> Integral:
    """Integrates `terms` with fixed steps between the increasing times `nodes`.

    Args:
        start, args, keep: as for `integrate_adaptively`.
    """
    dtype = jax.tree.leaves(start)[0].dtype
    nodes, steps = nodes.astype(dtype), len(nodes) - 1
    solution = diffrax.diffeqsolve(
        terms,
        method.scheme,
        nodes[0],
        nodes[-1],
        None,
        start,
        args,
        stepsize_controller=diffrax.StepTo(nodes),
        max_steps=steps,
        throw=False,
        saveat=diffrax.SaveAt(subs=_save_at(keep, nodes[0], nodes[-1])),
    )
    batch = len(jax.tree.leaves(start)[0])
    count = evaluations(method.cost, jnp.full(batch, steps), jnp.zeros(batch, jnp.int32))
    success = jnp.broadcast_to(solution.result == diffrax.RESULTS.successful, (batch,))
    values = cast(dict[str, BatchTree], solution.ys)
    return Integral(_last(values["end"]), count, success, values.get("saved"))


def _save_at(keep: SavedTimes | None, begin: Time, end: Time) -> dict[str, diffrax.SubSaveAt]:
    """Returns what diffrax saves: the end, and values at the times `keep`, clipped because rounding can exceed it."""
    last = {"end": diffrax.SubSaveAt(t1=True)}
    if keep is None:
        return last
    return last | {"saved": diffrax.SubSaveAt(ts=jnp.clip(keep, begin, end))}


def _last(path: BatchTree) -> BatchTree:
    return jax.tree.map(lambda states: states[-1], path)


def _rms(error: BatchTree) -> Float[Array, ""]:
    """Returns the root mean square over samples and dimensions."""
    leaves = jax.tree.leaves(error)
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves) / sum(leaf.size for leaf in leaves))


def _hardest(error: BatchTree) -> Float[Array, ""]:
    """Returns the largest root mean square of a sample."""
    leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(error)]
    dims = sum(leaf.shape[1] for leaf in leaves)
    return jnp.sqrt(jnp.max(sum(jnp.sum(leaf**2, axis=1) for leaf in leaves) / dims))
