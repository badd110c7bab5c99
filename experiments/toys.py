"""What the experiments with points in the plane share: sizes, distributions, processes, distances."""

import argparse
from typing import Any

import numpy as np

from experiments.trials import Setup, Trial, load
from lsgm_jax.build import build
from lsgm_jax.data.pipeline import whole_split
from lsgm_jax.evaluation.distances import energy_distance, sliced_wasserstein

SIZES: dict[str, Setup] = {
    "quick": ("cld_toy.py:quick", {}),
    "cpu": ("cld_toy.py", {"train.steps": 6000, "eval.batch_size": 2500}),
    "gpu": ("cld_toy.py", {"train.steps": 100_000, "eval.batch_size": 10_000}),
}
TOYS = ("gaussians", "checkerboard", "swiss_roll", "diamonds")
PROCESSES: dict[str, dict[str, Any]] = {
    "CLD": {},
    "VP": {"process.name": "vp", "objective.mixed_score": "normal"},
}
COUNT = {"quick": 200, "cpu": 5000, "gpu": 10_000}
KEY = "sliced_wasserstein"  # what conclusions are drawn from
METRICS = {KEY: "sliced Wasserstein distance", "energy_distance": "energy distance"}


def trial(toy: str, process: str) -> Trial:
    """One process on one distribution."""
    return Trial(f"{toy}-{process.lower()}", {"data.source": toy, **PROCESSES[process]})


def held_out(options: argparse.Namespace, toy: str) -> np.ndarray:
    """The test split."""
    return whole_split(build("data", load(SIZES[options.size], {"data.source": toy})), "test")


def distances(x: np.ndarray, test: np.ndarray) -> dict[str, int | float]:
    """The `METRICS`; the energy distance to as many of the test split as there are samples."""
    near = energy_distance(x, test[: len(x)])
    return {KEY: sliced_wasserstein(x, test), "energy_distance": near}
