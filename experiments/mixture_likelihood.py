"""Likelihood of CLD and VP on a Gaussian mixture, against the exact value.

python -m experiments.mixture_likelihood --out=runs/toys --size=cpu --seeds=0,1,2

Both are trained with the likelihood weighting; CLD also unweighted, as published for samples, and without the time
features of configs/cld_toy.py. -log p(x) is computed by the probability-flow ODE with the exact divergence at a tight
tolerance; CLD draws one velocity per point, which gives an upper bound. The difference to the exact -log p(x) of the
mixture, point by point, is the error of the network. Writes mixture_likelihood.csv and mixture_likelihood.md.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.toys import PROCESSES, SIZES, trial
from experiments.trials import (
    Row,
    Trial,
    column,
    command_line,
    conclude,
    file_of,
    over_seeds,
    run_trial,
    write_table,
)
from lsgm_jax.data.pipeline import whole_split
from lsgm_jax.data.points import DISTRIBUTIONS
from lsgm_jax.evaluation.estimators import estimate, evaluate_images
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.sampling.run import Run

TOY, TARGET = "gaussians", 0.02  # nats
# Changes per size: longer training. The last checkpoint is taken, because validation noise exceeds the late progress.
LONG: dict[str, dict[str, Any]] = {
    "quick": {},
    "cpu": {
        "train.steps": 20_000,
        "train.eval_every": 20_000,
        "data.batch_size": 1024,
        "optimiser.learning_rate": 4e-3,
    },
    "gpu": {"train.eval_every": 100_000},
}
POINTS = {"quick": 100, "cpu": 5000, "gpu": 10_000}
BY_LIKELIHOOD = {"objective.weighting": "likelihood", "density.name": "defensive", "density.t_min": 1e-5}
EVALUATION = [
    "--config.solver.name=Dopri5",
    "--config.steps.rtol=1e-5",
    "--config.steps.atol=1e-5",
    "--config.sampling.t_min=1e-4",
    "--config.divergence.name=exact",
]


def trials(size: str) -> list[Trial]:
    """Returns both processes with the likelihood weighting, CLD unweighted, and CLD without time features."""
    likelihood = {
        process: {**trial(TOY, process).fields, **BY_LIKELIHOOD, **LONG[size]} for process in PROCESSES
    }
    return [
        *(Trial(f"mixture-{process.lower()}", fields) for process, fields in likelihood.items()),
        Trial("mixture-cld-unweighted", {**trial(TOY, "CLD").fields, **LONG[size]}),
        Trial("mixture-cld-t-alone", {**likelihood["CLD"], "score.time_octaves": 0}),
    ]


def excess(run: Run, seed: int, count: int) -> tuple[np.ndarray, int]:
    """Computes -log p(x) of the model less that of the mixture for held-out points.

    Returns:
        The difference in nats, [count], and the number of failed solves.
    """
    ode_bound, planned, log_density = run.model.ode_bound, run.experiment, DISTRIBUTIONS[TOY].log_density
    assert ode_bound is not None
    assert log_density is not None

    def terms(params, batch, key, stratum):
        bound = ode_bound(params, batch, key, planned.sampler, planned.divergence)
        return {"nelbo": bound.nelbo, "success": bound.success}

    x, size = whole_split(planned.data, "test")[:count], planned.evaluation.batch_size
    key = jax.random.key(seed)
    found = evaluate_images(jax.jit(terms), run.best()[0], Batch(x), key, batch_size=size, label="ODE")
    return found["nelbo"] + log_density(x.astype(np.float64)), int((found["success"] < 1).sum())


def measure(options: argparse.Namespace) -> list[Row]:
    """Runs every trial with every seed and returns the rows."""
    rows = []
    for seed in options.seeds:
        for each in trials(options.size):
            report = run_trial(each, SIZES[options.size], seed, options.out, metrics=("nelbo",))
            row = {
                "trial": each.name,
                "seed": seed,
                "excess": math.nan,
                "error": math.nan,
                "worst": math.nan,
                "failed": 0,
            }
            if not report["diverged"]:
                run = Run.open(options.out / f"seed{seed}" / each.name, EVALUATION)
                values, row["failed"] = excess(run, seed, POINTS[options.size])
                row["excess"], row["error"] = estimate(values)
                row["worst"] = float(values.max())
            rows.append(row)
            write_table(file_of(options, "csv"), rows)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Formats the rows in Markdown, one line per trial, one column per seed."""
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    lines = [
        "| trial | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean over seeds |",
        "|---" * (len(seeds) + 2) + "|",
    ]
    for name in dict.fromkeys(row["trial"] for row in rows):
        pairs = zip(column(rows, name, "excess"), column(rows, name, "error"), strict=True)
        mean, error = over_seeds(column(rows, name, "excess"))
        cells = [*(f"{value:.4f} ± {spread:.4f}" for value, spread in pairs), f"{mean:.4f} ± {error:.4f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conclusions(rows: Sequence[Row]) -> list[str]:
    """States which trials come within the target of the ground truth."""
    lines = []
    for name in dict.fromkeys(row["trial"] for row in rows):
        mean, _ = over_seeds(column(rows, name, "excess"))
        verdict = "within" if abs(mean) < TARGET else "NOT within"
        lines.append(f"{name}: {mean:+.4f} nats above the ground truth on average, {verdict} {TARGET}.")
    return lines


def main() -> None:
    """Trains, evaluates and concludes."""
    options = command_line(__doc__, "mixture_likelihood")
    rows = measure(options)
    conclude(options, table(rows), conclusions(rows))


if __name__ == "__main__":
    main()
