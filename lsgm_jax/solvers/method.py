"""`Method`, a diffrax solver with its properties, and `ReverseSolver`, the base of the solvers of this package."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax.numpy as jnp

from lsgm_jax.arrays import Scalar, State
from lsgm_jax.processes.linear import Process
from lsgm_jax.solvers.terms import Index, Reverse, Time

Refusal = Callable[[Process], str | None]
Caution = Callable[[Process, str], str | None]


class Cost(NamedTuple):
    """Number of network evaluations.

    FSAL methods reuse the last stage of an accepted step as the first of the next. They take one more evaluation at the
    start, and after every rejection before the first accepted step, when there is no stage to reuse.
    """

    per_step: int  # per attempted step
    first: int = 0  # of FSAL methods, per attempted step while none has been accepted
    extra: int = 0  # once per solve; may be negative


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A diffrax solver and its properties.

    Attributes:
        name: its name in messages and tables.
        scheme: the solver. A `ReverseSolver` takes a `Reverse` term.
        dynamics: "ode" if it integrates the probability flow, "sde" if it integrates the reverse SDE as drift and
            diffusion, "own" if it uses noise prediction and noise in its own way.
        order: order of convergence in the step size; the weak order for stochastic solvers. Tests measure it.
        cost: number of network evaluations.
        adaptive: whether it has an error estimate, for adaptive steps.
        stochastic: whether it draws noise, so that z_1 does not determine z_0.
        refuse: returns why it cannot integrate a process and which solver can; None if it can.
        grid: name of the grid of a number of steps that names none (see `grids.GRIDS`).
        caution: returns why a few steps on a grid of this name are worse than as many of DDIM, and what helps; None if
            they are not. The command warns of it.
    """

    name: str
    scheme: diffrax.AbstractSolver
    dynamics: str
    order: int
    cost: Cost
    adaptive: bool = False
    stochastic: bool = False
    refuse: Refusal = lambda process: None
    grid: str = "linear"
    caution: Caution = lambda process, grid: None


@dataclasses.dataclass(frozen=True)
class Step:
    """Step `index` of a fixed grid, from t to s < t.

    `remaining` counts the steps from this one to the last; None if their number is not known.
    """

    index: Index
    t: Scalar
    s: Scalar
    remaining: Index | None = None


class ReverseSolver(diffrax.AbstractSolver):
    """Base of the solvers of this package, which step in the times of the process.

    A subclass implements `advance`, and `remember` if it has a memory between steps. Its fields are its settings.
    States are `Any` here, because some subclasses take plain latents alone, and others take phases.
    """

    term_structure: ClassVar = Reverse
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def remember(self, term: Reverse, z: Any) -> Any:
        """Returns the memory before the first step: arrays of fixed shapes."""
        return None

    def advance(self, term: Reverse, step: Step, z: Any, memory: Any) -> tuple[Any, Any]:
        """Returns state and memory at `step.s`."""
        raise NotImplementedError

    def init(self, terms: Any, t0: Time, t1: Time, y0: State, args: Any) -> tuple[Index, Any]:
        """Returns the index of the first step, and the memory."""
        return jnp.zeros((), jnp.int32), self.remember(_unwrapped(terms), y0)

    def step(
        self,
        terms: Any,
        t0: Time,
        t1: Time,
        y0: State,
        args: Any,
        solver_state: tuple[Index, Any],
        made_jump: Any,
    ) -> tuple[State, None, dict[str, State], tuple[Index, Any], diffrax.RESULTS]:
        """Takes one step, by diffrax's interface."""
        index, memory = solver_state
        term = _unwrapped(terms)
        remaining = None if term.problem.steps is None else term.problem.steps - index
        step = Step(index, jnp.asarray(1.0 - t0), jnp.asarray(1.0 - t1), remaining)
        y1, memory = self.advance(term, step, y0, memory)
        return y1, None, {"y0": y0, "y1": y1}, (index + 1, memory), diffrax.RESULTS.successful

    def func(self, terms: Any, t0: Time, y0: State, args: Any) -> State:
        """Returns the vector field of the probability flow."""
        return terms.vf(t0, y0, args)


def _unwrapped(terms: Any) -> Reverse:
    """Returns the term itself, which diffrax wraps in another for the direction of time, here always forward."""
    return terms.term


def one_coordinate(name: str) -> Refusal:
    """Returns the `refuse` of a solver for processes of one coordinate: it refuses processes with a velocity."""

    def refuse(process: Process) -> str | None:
        if len(process.prior_variance()) == 1:
            return None
        return (
            f"solver {name!r} is for processes of one coordinate, not for {type(process).__name__}: "
            "use SSCS, GDDIM, EulerMaruyama or an ODE solver such as Tsit5"
        )

    return refuse


def ruined_on(name: str, grids: Collection[str], instead: str) -> Caution:
    """Returns the `caution` of a solver that grids of these names ruin, whatever the process."""

    def caution(process: Process, grid: str) -> str | None:
        if grid not in grids:
            return None
        return f"few steps of {name} on the grid {grid!r} are worse than those of DDIM: {instead}"

    return caution
