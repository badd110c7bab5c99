"""Shared by the experiments with points in the plane: sizes, distributions, processes, distances."""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.trials import Row, Setup, Trial, load, run_trial
from lsgm_jax.arrays import Params
from lsgm_jax.config.factory import experiment
from lsgm_jax.data.pipeline import whole_split
from lsgm_jax.evaluation.fid import energy_distance, sliced_wasserstein
from lsgm_jax.sampling.run import Run

# A seventh of the config's compute, because there are twenty-four models.
SHORT = {"train.steps": 6000, "data.batch_size": 512, "optimiser.learning_rate": 2e-3}
SIZES: dict[str, Setup] = {
    "quick": ("cld_toy.py:quick", {}),
    "cpu": ("cld_toy.py", {**SHORT, "eval.batch_size": 2500}),
    "gpu": ("cld_toy.py", {"train.steps": 100_000, "eval.batch_size": 10_000}),
}
TOYS = ("gaussians", "checkerboard", "swiss_roll", "diamonds")
PROCESSES: dict[str, dict[str, Any]] = {
    "CLD": {},
    "VP": {"process.name": "vp", "objective.mixed_score": "gaussian"},
}
COUNT = {"quick": 200, "cpu": 4000, "gpu": 10_000}  # samples per setting
FOR_ENERGY = 2000  # samples for the energy distance, whose cost is quadratic
KEY = "sliced_wasserstein"  # metric of the conclusions
METRICS = {KEY: "sliced Wasserstein distance", "energy_distance": "energy distance"}


def trial(toy: str, process: str) -> Trial:
    """Builds the trial of one process on one distribution."""
    return Trial(f"{toy}-{process.lower()}", {"data.source": toy, **PROCESSES[process]})


def trained(options: argparse.Namespace, process: str) -> tuple[Run, dict[tuple[str, int], Params]]:
    """Trains a process on every distribution with every seed, or reads the runs if they exist.

    Returns:
        One of the runs, whose model is the same for all, and the parameters of each by (distribution, seed).
    """
    runs = {}
    for seed in options.seeds:
        for toy in TOYS:
            each = trial(toy, process)
            run_trial(each, SIZES[options.size], seed, options.out, metrics=("nelbo",))
            runs[toy, seed] = Run.open(options.out / f"seed{seed}" / each.name)
    return next(iter(runs.values())), {where: run.best()[0] for where, run in runs.items()}


def held_out(options: argparse.Namespace, toy: str) -> np.ndarray:
    """Returns the test split of a distribution."""
    return whole_split(experiment(load(SIZES[options.size], {"data.source": toy})).data, "test")


def distances(x: np.ndarray, test: np.ndarray) -> dict[str, int | float]:
    """Computes the `METRICS`."""
    near = energy_distance(x[:FOR_ENERGY], test[:FOR_ENERGY])
    return {KEY: sliced_wasserstein(x, test), "energy_distance": near}


def by_seed(rows: Sequence[Row], key: str, **wanted: Any) -> list[float]:
    """Returns one value per seed, ordered by seed."""
    chosen = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return [row[key] for row in sorted(chosen, key=lambda row: row["seed"])]


def nfe_axis(axis: Any, budgets: Sequence[int], title: str) -> None:
    """Labels axes of a distance by NFE, on logarithmic scales."""
    axis.set(xscale="log", yscale="log", xlabel="NFE", title=title)
    axis.set_xticks(budgets, [str(nfe) for nfe in budgets])
    axis.xaxis.minorticks_off()
