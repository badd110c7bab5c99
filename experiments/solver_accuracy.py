"""Compares every solver with the exact probability flow at 5, 10 and 20 steps, on its default grid.

python -m experiments.solver_accuracy

Data on a line, N(1.5, 0.25) and a mixture of three Gaussians, have a flow in closed form: it maps the quantiles of the
marginal at t = 1 to those at t_min. The noise prediction is exact, so every error is that of the solver. An error is
the mean distance of sorted samples to the exact quantiles (Wasserstein-1), which holds for stochastic solvers and for
CLD too. For a deterministic solver of one coordinate it is the mean distance to the exact flow. The noise of the start
is quasi-random; that of stochastic solvers is random and leaves a floor of about 0.005.

A solver with two evaluations per step has two lines: at equal steps, and at equal evaluations (NFE). Errors above that
of DDIM on its own grid, or of GDDIM of order 1 for CLD, are marked by the factor. Prints one table per process.
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import ndtr, ndtri
from scipy.stats import qmc
from tqdm import tqdm

from lsgm_jax.arrays import EpsNet, Latents, PerSample, Scalar, State, Times, as_state, coordinates
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.discrete import discrete_vp
from lsgm_jax.processes.linear import Process, kernel
from lsgm_jax.processes.matrices import add_noise, solve_lower_state
from lsgm_jax.processes.ve import VE
from lsgm_jax.processes.vp import VP, SubVP
from lsgm_jax.solvers.grids import GRIDS
from lsgm_jax.solvers.method import Method
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, solve_to_data
from lsgm_jax.solvers.terms import KeyedNoise

STEPS = (5, 10, 20)
COUNT = 16384
SEED = 0
DATA = ("Gaussian", "mixture")
# Means and variances of three equally likely components, one row per distribution of `DATA`.
MEANS = np.array([[1.5, 1.5, 1.5], [-1.5, 0.0, 1.5]])
VARIANCES = np.array([[0.25, 0.25, 0.25], [0.04, 0.04, 0.04]])
PROCESSES: dict[str, tuple[Process, float]] = {
    "DDPM chain": (discrete_vp(schedule="sqrt_linear", first=1e-4, last=0.02), 1e-3),
    "VP": (VP(), 1e-3),
    "sub-VP": (SubVP(), 1e-3),
    "VE": (VE(), 1e-5),
    "CLD": (CLD(), 1e-3),
}
# Options that are solvers of their own.
VARIANTS = {
    "DPMSolverPP": [
        *(dict(), dict(order=3), dict(order=3, third="exact")),
        *(dict(lower_order_final=False), dict(order=3, lower_order_final=False)),
    ],
    "UniPC": [dict(), dict(order=3), dict(order=3, lower_order_final=False)],
    "SSCS": [dict(), dict(order=2)],
    "GDDIM": [dict(order=1), dict(), dict(order=3)],
}


class Case(NamedTuple):
    """A solver with its options, and its numbers of steps for `STEPS`; 0 where it cannot take so few evaluations."""

    label: str
    method: Method
    steps: tuple[int, ...]


def cases(process: Process) -> Iterator[Case]:
    """Yields the solvers of a process, the one that the others are compared with first."""
    names = sorted(METHODS, key=lambda name: name not in ("DDIM", "GDDIM"))
    for name in names:
        for options in VARIANTS.get(name, [{}]):
            method = METHODS[name](**options)
            if method.refuse(process) is not None:
                continue
            label = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
            yield Case(label, method, STEPS)
            if method.cost.per_step > 1:
                cost = method.cost
                fewer = tuple((n - cost.first - cost.extra) // cost.per_step for n in STEPS)
                yield Case(f"{label}, equal NFE", method, fewer)


def eps_net(process: Process, means: Float[Array, "3"], variances: Float[Array, "3"]) -> EpsNet:
    """Returns the exact noise prediction for a mixture on the line: that of each component by its posterior."""

    def predict(z_t: State, t: Times) -> Latents:
        signal, noise = kernel(process, t)

        def component(mean: Scalar, variance: Scalar) -> tuple[PerSample, Latents]:
            marginal = add_noise(noise, signal * jnp.sqrt(variance))
            centred = [z - mean * signal[:, i, None] for i, z in enumerate(coordinates(z_t))]
            whitened = solve_lower_state(marginal, as_state(centred))
            scale = jnp.log(jnp.diagonal(marginal, axis1=1, axis2=2)).sum(axis=1)
            log_density = -0.5 * sum(jnp.sum(w**2, axis=1) for w in whitened) - scale
            return log_density, (noise[:, -1, -1] / marginal[:, -1, -1])[:, None] * whitened[-1]

        log_densities, eps = jax.vmap(component)(means, variances)
        return jnp.sum(jax.nn.softmax(log_densities, axis=0)[..., None] * eps, axis=0)

    return predict


@functools.cache
def starts(process: Process) -> np.ndarray:
    """Returns quasi-random draws of the exact marginal at t = 1, [data, coordinates, samples]."""
    signal, noise = (np.asarray(value, float) for value in kernel(process, jnp.ones(())))
    size = len(signal)
    draws = ndtri(qmc.Sobol(size + 2, rng=SEED).random(COUNT))
    component = np.minimum((3 * ndtr(draws[:, 0])).astype(int), 2)
    data = MEANS[:, component] + np.sqrt(VARIANCES[:, component]) * draws[:, 1]
    return signal[:, None] * data[:, None] + (noise @ draws[:, 2:].T)


def quantiles(process: Process, t_min: float) -> np.ndarray:
    """Returns the exact quantiles of the first coordinate at t_min, [data, samples], by bisection."""
    signal, noise = (np.asarray(value, float) for value in kernel(process, jnp.asarray(t_min)))
    deviations = np.sqrt(signal[0] ** 2 * VARIANCES + noise[0, 0] ** 2)
    wanted = (np.arange(COUNT) + 0.5) / COUNT
    low, high = np.full((2, len(DATA), COUNT), [[[-20.0]], [[20.0]]])
    for _ in range(60):
        middle = 0.5 * (low + high)
        each = (middle[..., None] - signal[0] * MEANS[:, None]) / deviations[:, None]
        below = ndtr(each).mean(axis=-1) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return 0.5 * (low + high)


def errors(process: Process, t_min: float, method: Method, grid: str, steps: int) -> np.ndarray:
    """Returns the distance of samples to the data at t_min, one for each of `DATA`."""
    sampler = Sampler(method=method, steps=GRIDS[grid](steps=steps), t_min=t_min)
    noise = KeyedNoise(jax.random.key(SEED))

    @jax.jit
    @jax.vmap
    def solve(start: Array, means: Array, variances: Array) -> Array:
        state = as_state(list(start[..., None]))
        return solve_to_data(sampler, process, eps_net(process, means, variances), state, noise).z_0[:, 0]

    rows = (jnp.asarray(value, jnp.float32) for value in (starts(process), MEANS, VARIANCES))
    ends = np.sort(np.asarray(solve(*rows)), axis=1)
    return np.abs(ends - quantiles(process, t_min)).mean(axis=1)


def cell(values: np.ndarray | None, least: np.ndarray) -> str:
    """Formats the errors, each with its factor where it exceeds the least by a tenth and the noise of sampling."""
    if values is None:
        return "| | "
    marks = [f" (x {a / b:.1f})" if a > 1.1 * b + 0.005 else "" for a, b in zip(values, least, strict=True)]
    return "| " + " | ".join(f"{value:.4f}{mark}" for value, mark in zip(values, marks, strict=True)) + " "


def table(name: str, grids: Sequence[str], only: Sequence[str]) -> Iterator[str]:
    """Yields the lines of the table of a process.

    Args:
        grids: names of grids; none for each solver's own.
        only: names of solvers; none for all.
    """
    process, t_min = PROCESSES[name]
    yield f"| {name} | grid | " + " | ".join(f"{n} steps, {kind}" for n in STEPS for kind in DATA) + " |"
    yield "|---" * (2 + len(DATA) * len(STEPS)) + "|"
    least: dict[int, np.ndarray] = {}
    for case in tqdm(list(cases(process)), desc=name, leave=False):
        if least and only and case.label.split()[0].rstrip(",") not in only:
            continue
        for grid in grids or [case.method.grid]:
            cells = ""
            for wanted, steps in zip(STEPS, case.steps, strict=True):
                found = errors(process, t_min, case.method, grid, steps) if steps > 0 else None
                if found is not None:
                    least.setdefault(wanted, found)
                cells += cell(found, least.get(wanted, np.full(len(DATA), np.inf)))
            yield f"| {case.label} | {grid} {cells}|"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--processes", default=",".join(PROCESSES), help="names, separated by commas")
    parser.add_argument("--grids", default="", help="grids for all solvers, instead of each one's own")
    parser.add_argument("--solvers", default="", help="solvers to compare; all if empty")
    options = parser.parse_args()
    split = lambda text: [part for part in text.split(",") if part]
    for name in split(options.processes):
        for line in table(name, split(options.grids), split(options.solvers)):
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
