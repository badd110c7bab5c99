"""The states on the way from noise to data: of any solver, in the one call that samples."""

from typing import NamedTuple

from jaxtyping import Array

from lsgm_jax.arrays import EpsNet, State, coordinates
from lsgm_jax.processes.linear import Process
from lsgm_jax.solvers.integrate import SavedTimes
from lsgm_jax.solvers.sampler import Sampler, Solution, carry_to_data
from lsgm_jax.solvers.terms import Noise


class Path(NamedTuple):
    """Where samples were at some times, and the samples themselves."""

    times: SavedTimes  # decreasing
    states: State  # [times, batch, ...], before the denoising step
    solution: Solution

    @property
    def positions(self) -> Array:
        """The coordinate that becomes data, [times, batch, ...]; at the last time the samples themselves."""
        return coordinates(self.states)[0].at[-1].set(self.solution.z_0)


def trajectory_to_data(
    sampler: Sampler, process: Process, eps_net: EpsNet, z_1: State, noise: Noise, times: SavedTimes
) -> Path:
    """Carries z_1 to the data as `solve_to_data` does, and keeps the states at `times`.

    Between the solver's steps it is the solver that interpolates: diffrax's ODE solvers to about their order, others
    and ours by straight lines. A stochastic path is therefore as rough as its steps, and no rougher.

    Args:
        times: decreasing, within those of the sampler; others are taken for the nearest of these.

    Raises:
        ValueError: if the solver cannot integrate the process; names what can.
    """
    solution, states = carry_to_data(sampler, process, eps_net, z_1, noise, times)
    return Path(times, states, solution)
