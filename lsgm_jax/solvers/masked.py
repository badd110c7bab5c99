"""Inpainting: a solver for which a part of the data is known (Lugmayr et al. 2022; "mask" in Rombach et al. 2022)."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

from lsgm_jax.arrays import Latents
from lsgm_jax.processes.linear import perturb
from lsgm_jax.solvers.method import Method, ReverseSolver, Step
from lsgm_jax.solvers.terms import Reverse, times_like

PART = 1 << 20  # index of the noise within a step, larger than those that the solvers use


class Masked(ReverseSolver):
    """Wraps a solver: before each step, the known part of the state is replaced by the perturbed known data."""

    solver: ReverseSolver
    keep: Float[Array, "..."]
    known: Latents

    def remember(self, term: Reverse, z: Any) -> Any:
        """Returns the memory of the wrapped solver."""
        return self.solver.remember(term, z)

    def advance(self, term: Reverse, step: Step, z: Any, memory: Any) -> tuple[Any, Any]:
        """Takes a step of the wrapped solver from the blended state."""
        noise = term.problem.noise.draw(step.index, PART, z)
        diffused = perturb(term.problem.process, self.known, times_like(z, step.t), noise)
        blended = jax.tree.map(lambda new, old: self.keep * new + (1.0 - self.keep) * old, diffused, z)
        return self.solver.advance(term, step, blended, memory)


def masked(method: Method, keep: Float[Array, "..."], known: Latents) -> Method:
    """Returns the method for inpainting, given the known data. The last state is not blended, as in LDM.

    Args:
        keep: 1 where the data are known, 0 where they are sampled; broadcasts against the latents [batch, ...].
        known: latents [batch, ...]; without effect where `keep` is 0.

    Raises:
        ValueError: for a method that does not step in the times of the process, such as the solvers of diffrax.
    """
    if not isinstance(method.scheme, ReverseSolver):
        raise ValueError(
            f"solver {method.name!r} cannot keep a known part of the data: use one that steps in the times of the "
            "process, such as --solver=DDIM --steps=50"
        )
    return dataclasses.replace(method, scheme=Masked(method.scheme, keep, known), stochastic=True)
