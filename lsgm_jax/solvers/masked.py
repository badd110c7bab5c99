"""Filling in: a solver that is told a part of the data (Lugmayr et al. 2022; Rombach et al. 2022, as "mask")."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from lsgm_jax.arrays import Latents
from lsgm_jax.processes.linear import perturb
from lsgm_jax.solvers.method import Method, ReverseSolver, Step
from lsgm_jax.solvers.terms import Reverse, times_like

PART = 1 << 20  # of a step's noise: beyond what solvers draw for themselves


class Masked(ReverseSolver):
    """Another solver, before whose steps the known part is replaced by the known data with fresh noise."""

    solver: ReverseSolver
    keep: Float[Array, "..."]
    known: Latents

    def remember(self, term: Reverse, z: Any) -> Any:
        """The memory of the solver."""
        return self.solver.remember(term, z)

    def advance(self, term: Reverse, step: Step, z: Any, memory: Any) -> tuple[Any, Any]:
        """A step of the solver from the blended state."""
        noise = term.problem.noise.draw(step.index, PART, z)
        diffused = perturb(term.problem.process, self.known, times_like(z, step.t), noise)
        blended = jax.tree.map(lambda new, old: self.keep * new + (1.0 - self.keep) * old, diffused, z)
        return self.solver.advance(term, step, blended, memory)


def masked(method: Method, keep: Float[Array, "..."], known: Latents) -> Method:
    """The method, told the part of the data that `keep` marks. The last state is not blended, as LDM has it.

    Args:
        keep: 1 where the data is known, 0 where it is to be filled in; broadcasts against the latents [batch, ...].
        known: latents [batch, ...]; of no effect where `keep` is 0.

    Raises:
        ValueError: for a method that does not step in the times of the process, such as diffrax's own.
    """
    if not isinstance(method.scheme, ReverseSolver):
        raise ValueError(
            f"solver {method.name!r} cannot be told a part of the data: use one that steps in the times of the "
            "process, such as --solver=DDIM --steps=50"
        )
    return dataclasses.replace(method, scheme=Masked(method.scheme, keep, known), stochastic=True)
