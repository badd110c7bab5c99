"""What a network's output means: the noise, the data, or a velocity between them (D17).

Everything else of the package speaks of predicted noise. A prediction turns the output into that, by the kernel alone,
so that losses, solvers and likelihoods do not know what a network was asked for.
"""

from collections.abc import Callable
from typing import Any

from lsgm_jax.arrays import Latents, State, Times, coordinates, expand
from lsgm_jax.processes.linear import Process, kernel, whitened_signal
from lsgm_jax.processes.matrices import solve_lower_state

# Process, z_t, t and the network's output to eps_hat; the state is the process's kind.
Prediction = Callable[[Any, Any, Times, Latents], Latents]


def eps(process: Process, z_t: State, t: Times, output: Latents) -> Latents:
    """The noise of the last coordinate itself (Ho et al. 2020)."""
    return output


def x_0(process: Process, z_t: State, t: Times, output: Latents) -> Latents:
    """The noise that goes with predicted data: the inverse of `expected_data`, for every process (D15)."""
    last = solve_lower_state(kernel(process, t).noise, z_t)[-1]
    return last - expand(whitened_signal(process, t)[:, -1], last) * output


def v(process: Process, z_t: State, t: Times, output: Latents) -> Latents:
    """The noise that goes with v = alpha eps - sigma x_0 (Salimans and Ho 2022), for processes of one coordinate.

    Raises:
        ValueError: for a process of several coordinates.
    """
    require_one_coordinate(process)
    signal, noise = kernel(process, t)
    alpha, sigma = expand(signal[:, 0], output), expand(noise[:, 0, 0], output)
    return (alpha * output + sigma * coordinates(z_t)[0]) / (alpha**2 + sigma**2)


PREDICTIONS: dict[str, Prediction] = {"eps": eps, "x_0": x_0, "v": v}


def require_one_coordinate(process: Process) -> None:
    """Refuses processes for which v is not defined.

    Raises:
        ValueError: if the process has several coordinates; names what it may have instead.
    """
    if len(process.prior_variance()) > 1:
        raise ValueError(
            f"v is for processes of one coordinate, not for {type(process).__name__}: take that of eps or x_0"
        )
