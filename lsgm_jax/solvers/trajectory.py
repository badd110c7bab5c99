"""Sampling trajectories: the states between noise and data, of any solver, saved in the call that samples."""

from typing import NamedTuple

from jaxtyping import Array

from lsgm_jax.arrays import EpsNet, State, coordinates
from lsgm_jax.processes.linear import Process
from lsgm_jax.solvers.integrate import SavedTimes
from lsgm_jax.solvers.sampler import Sampler, Solution, solve_and_save
from lsgm_jax.solvers.terms import Noise


class Trajectory(NamedTuple):
    """The states of samples at given times, and the samples themselves."""

    times: SavedTimes  # decreasing
    states: State  # [times, batch, ...], before the denoising step
    solution: Solution

    @property
    def positions(self) -> Array:
        """The first coordinate of the states, [times, batch, ...], with the samples themselves at the last time."""
        return coordinates(self.states)[0].at[-1].set(self.solution.z_0)


def trajectory_to_data(
    sampler: Sampler, process: Process, eps_net: EpsNet, z_1: State, noise: Noise, times: SavedTimes
) -> Trajectory:
    """Integrates z_1 to the data as `solve_to_data` does, and saves the states at `times`.

    Between its steps, the solver interpolates: the ODE solvers of diffrax to about their order, all others linearly. A
    stochastic trajectory is therefore as rough as its steps.

    Args:
        times: decreasing; clipped to the times of the sampler.

    Raises:
        ValueError: if the solver cannot integrate the process; names solvers that can.
    """
    solution, states = solve_and_save(sampler, process, eps_net, z_1, noise, times)
    return Trajectory(times, states, solution)
