"""A diffrax solver and what has to be known about it to sample with it, and the base of our own."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax.numpy as jnp

from lsgm_jax.arrays import State
from lsgm_jax.processes.linear import Process
from lsgm_jax.solvers.terms import Time, Index, Reverse

Refusal = Callable[[Process], str | None]


class Cost(NamedTuple):
    """Evaluations of the network.

    FSAL methods reuse the last stage of an accepted step as the first of the next. They pay one evaluation extra at
    the start, and again after every rejection that comes before the first acceptance, when there is nothing to reuse.
    """

    per_step: int  # of every attempted step
    first: int = 0  # what FSAL methods pay while no step has been accepted yet
    extra: int = 0  # once per solve, whatever happens; may be negative


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A diffrax solver, ready for use.

    Attributes:
        scheme: the solver. Of our own, it takes a `Reverse` term.
        dynamics: what it integrates: the probability-flow "ode", the reverse "sde" as drift and diffusion, or its "own"
            use of noise prediction and noise.
        order: in the length of the steps, of the moments for stochastic ones: what tests hold it to.
        cost: evaluations of the network.
        adaptive: whether it has an error estimate to choose steps by.
        stochastic: whether it draws noise on the way, so that z_1 does not determine where it ends.
        refuse: why it cannot integrate a process, and what can; None if it can.
    """

    name: str
    scheme: diffrax.AbstractSolver
    dynamics: str
    order: int
    cost: Cost
    adaptive: bool = False
    stochastic: bool = False
    refuse: Refusal = lambda process: None


@dataclasses.dataclass(frozen=True)
class Step:
    """From t to s < t, step `index` of a fixed grid."""

    index: Index
    t: Time
    s: Time


class ReverseSolver(diffrax.AbstractSolver):
    """Base of our own solvers: one step in the times of the process, and what is remembered between steps.

    A subclass gives `advance`, and `remember` if it has a memory. Its fields are its settings. States are `Any` here
    because some are for plain latents alone, and some for phases.
    """

    term_structure: ClassVar = Reverse
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def remember(self, term: Reverse, z: Any) -> Any:
        """The memory before the first step: arrays of fixed shapes."""
        return None

    def advance(self, term: Reverse, step: Step, z: Any, memory: Any) -> tuple[Any, Any]:
        """State and memory at `step.s`."""
        raise NotImplementedError

    def init(self, terms: Any, t0: Time, t1: Time, y0: State, args: Any) -> tuple[Index, Any]:
        """Number of the first step, and the memory."""
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
        """One step, in diffrax's words."""
        index, memory = solver_state
        y1, memory = self.advance(_unwrapped(terms), Step(index, 1.0 - t0, 1.0 - t1), y0, memory)
        return y1, None, {"y0": y0, "y1": y1}, (index + 1, memory), diffrax.RESULTS.successful

    def func(self, terms: Any, t0: Time, y0: State, args: Any) -> State:
        """The probability flow."""
        return terms.vf(t0, y0, args)


def _unwrapped(terms: Any) -> Reverse:
    """The term itself; diffrax hands it on inside another that knows the direction of time, which is always forward."""
    return terms.term


def one_coordinate(name: str) -> Refusal:
    """Refuses processes with a velocity."""

    def refuse(process: Process) -> str | None:
        if len(process.prior_variance()) == 1:
            return None
        return (
            f"solver {name!r} is for processes of one coordinate, not for {type(process).__name__}: "
            "use SSCS, GDDIM, EulerMaruyama or an ODE solver such as Tsit5"
        )

    return refuse
