"""Parameterisations of the network's output: noise, data, v, or velocity (D17).

All other modules use predicted noise. A `Prediction` converts the network's output to noise by the kernel alone, so
losses, solvers and likelihoods are the same for every parameterisation.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from lsgm_jax.arrays import Latents, State, Times, coordinates, expand
from lsgm_jax.processes.linear import Process, flow_rate, kernel, probability_flow, whitened_signal
from lsgm_jax.processes.matrices import solve_lower_state

# (process, z_t, t, output of the network) -> eps_hat; z_t is a state of the process.
Prediction = Callable[[Any, Any, Times, Latents], Latents]


def eps(process: Process, z_t: State, t: Times, output: Latents) -> Latents:
    """Returns the output, which is the noise of the last coordinate itself (Ho et al. 2020)."""
    return output


def x_0(process: Process, z_t: State, t: Times, output: Latents) -> Latents:
    """Returns the noise for predicted data, the inverse of `expected_data`, for any process (D15)."""
    last = solve_lower_state(kernel(process, t).noise, z_t)[-1]
    return last - expand(whitened_signal(process, t)[:, -1], last) * output


def v(process: Process, z_t: State, t: Times, output: Latents) -> Latents:
    """Returns the noise for a predicted v = alpha eps - sigma x_0 (Salimans and Ho 2022).

    Raises:
        ValueError: if the process has several coordinates.
    """
    require_one_coordinate(process)
    signal, noise = kernel(process, t)
    alpha, sigma = expand(signal[:, 0], output), expand(noise[:, 0, 0], output)
    return (alpha * output + sigma * coordinates(z_t)[0]) / (alpha**2 + sigma**2)


def velocity(process: Process, z_t: State, t: Times, output: Latents) -> Latents:
    """Returns the noise for a predicted velocity of the probability flow, dz/dt of the last coordinate (D5).

    It is the velocity of flow matching (Lipman et al. 2023) for the Gaussian paths of these processes.
    """
    still = coordinates(probability_flow(process, z_t, jnp.zeros_like(output), t))[-1]
    return (output - still) / expand(flow_rate(process, t), output)


PREDICTIONS: dict[str, Prediction] = {"eps": eps, "x_0": x_0, "v": v, "velocity": velocity}


def require_one_coordinate(process: Process) -> None:
    """Checks that v is defined for the process.

    Raises:
        ValueError: if the process has several coordinates; names the parameterisations that are defined for it.
    """
    if len(process.prior_variance()) > 1:
        raise ValueError(
            f"v is for processes of one coordinate, not for {type(process).__name__}: take that of eps, x_0 or velocity"
        )
