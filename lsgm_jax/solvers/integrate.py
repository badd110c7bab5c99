"""One call of diffrax: fixed steps, or adaptive ones per sample, per batch, or by the hardest sample."""

import dataclasses
from typing import Any, NamedTuple, cast

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lsgm_jax.solvers.grids import Nodes
from lsgm_jax.solvers.method import Method
from lsgm_jax.solvers.nfe import Count, CountingController, EarlyRejections, evaluations
from lsgm_jax.solvers.terms import Time

Tree = Any  # states, and what else is integrated, of a batch: [batch, ...] each
SavedTimes = Float[Array, "kept"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Steps chosen by the solver's error estimate.

    Attributes:
        rtol, atol: tolerances.
        per: whose error chooses. "sample": each sample has steps of its own, as many as it needs; the network still
            runs on the whole batch, as often as the hardest sample needs. "batch": one step for all, by the mean square
            error over everything, as the originals have it; a hard sample can hide. "hardest": one step for all, by the
            sample with the largest error.
        max_steps: attempted steps after which a solve is given up as failed.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    per: str = "sample"
    max_steps: int = 4096

    def __post_init__(self):
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol={self.rtol}, atol={self.atol}: tolerances must be positive")
        if self.per not in ("sample", "batch", "hardest"):
            raise ValueError(f"per={self.per!r} is none of sample, batch, hardest")
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps}: give a positive number")


class Integral(NamedTuple):
    """Where a solve ended, what it cost, and what was kept on the way."""

    end: Tree
    evaluations: Count
    success: Bool[Array, "batch"]
    kept: Tree  # [times, batch, ...] each; None if nothing was to be kept


def _for_one_sample(term: diffrax.ODETerm) -> diffrax.ODETerm:
    """A term of batches for a single sample."""

    def vector_field(t: Time, y: Tree, args: Tree) -> Tree:
        batch = jax.tree.map(lambda v: v[None], (y, args))
        return jax.tree.map(lambda v: v[0], term.vf(t, *batch))

    return diffrax.ODETerm(vector_field)


def integrate_adaptively(
    method: Method,
    steps: Adaptive,
    term: diffrax.ODETerm,
    start: Tree,
    begin: float,
    end: float,
    args: Tree = None,
    keep: SavedTimes | None = None,
) -> Integral:
    """Integrates `term` from `begin` to `end` > `begin`.

    Args:
        start: state of the batch.
        args: what the term takes beside it, [batch, ...] each.
        keep: increasing times whose states are kept, by the solver's interpolation; they change no step. What a solve
            that failed did not reach is infinite.
    """
    dtype = jax.tree.leaves(start)[0].dtype
    norm = _hardest if steps.per == "hardest" else _rms
    controller = CountingController(rtol=steps.rtol, atol=steps.atol, norm=norm)

    def solve(term: diffrax.ODETerm, start: Tree, args: Tree) -> diffrax.Solution:
        return diffrax.diffeqsolve(
            term,
            method.scheme,
            jnp.asarray(begin, dtype),
            jnp.asarray(end, dtype),
            jnp.asarray(1e-3, dtype),
            start,
            args,
            stepsize_controller=controller,
            max_steps=steps.max_steps,
            throw=False,
            saveat=diffrax.SaveAt(subs=_saved(keep, begin, end), controller_state=True),
        )

    if steps.per == "sample":
        solution = jax.vmap(lambda start, args: solve(_for_one_sample(term), start, args))(start, args)
        saved = cast(dict[str, Tree], solution.ys)
        final = jax.tree.map(lambda path: path[:, -1], saved["end"])
        kept = jax.tree.map(lambda path: jnp.swapaxes(path, 0, 1), saved.get("kept"))
    else:
        solution = solve(term, start, args)
        saved = cast(dict[str, Tree], solution.ys)
        final, kept = _last(saved["end"]), saved.get("kept")
    batch = len(jax.tree.leaves(start)[0])
    early = cast(EarlyRejections, solution.controller_state).early
    each = (jnp.broadcast_to(count, (batch,)) for count in (solution.stats["num_steps"], early))
    success = jnp.broadcast_to(solution.result == diffrax.RESULTS.successful, (batch,))
    return Integral(final, evaluations(method.cost, *each), success, kept)


def integrate_on(
    method: Method, nodes: Nodes, terms: Any, start: Tree, args: Tree = None, keep: SavedTimes | None = None
) -> Integral:
    """Integrates `terms` over the increasing times `nodes`, whatever the error; `keep` as in `integrate_adaptively`."""
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
        saveat=diffrax.SaveAt(subs=_saved(keep, nodes[0], nodes[-1])),
    )
    batch = len(jax.tree.leaves(start)[0])
    count = evaluations(method.cost, jnp.full(batch, steps), jnp.zeros(batch, jnp.int32))
    success = jnp.broadcast_to(solution.result == diffrax.RESULTS.successful, (batch,))
    saved = cast(dict[str, Tree], solution.ys)
    return Integral(_last(saved["end"]), count, success, saved.get("kept"))


def _saved(keep: SavedTimes | None, begin: Time, end: Time) -> dict[str, diffrax.SubSaveAt]:
    """What diffrax is to save: the end, and the states at the times `keep`, which rounding may have put beyond it."""
    last = {"end": diffrax.SubSaveAt(t1=True)}
    if keep is None:
        return last
    return last | {"kept": diffrax.SubSaveAt(ts=jnp.clip(keep, begin, end))}


def _last(path: Tree) -> Tree:
    return jax.tree.map(lambda states: states[-1], path)


def _rms(error: Tree) -> Float[Array, ""]:
    """Root mean square over samples and dimensions."""
    leaves = jax.tree.leaves(error)
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in leaves) / sum(leaf.size for leaf in leaves))


def _hardest(error: Tree) -> Float[Array, ""]:
    """The largest root mean square of a sample."""
    leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(error)]
    dims = sum(leaf.shape[1] for leaf in leaves)
    return jnp.sqrt(jnp.max(sum(jnp.sum(leaf**2, axis=1) for leaf in leaves) / dims))
