"""Ablation of CLD's hyperparameters and objective: mass, variance of the initial velocity, hybrid score matching.

python -m experiments.cld_ablation --out=runs/toys --size=cpu --seeds=0,1,2

The data are points in the plane. The first part crosses mass and variance at critical damping. The second compares
hybrid with plain (denoising) score matching under two weightings, without gradient clipping. Each row has the NELBO,
the sliced Wasserstein distance of samples by SSCS and by the ODE at a fixed NFE, and the relative standard deviation of
the loss and the gradient norms in the second half of training. Writes cld_ablation.csv, .png and .md with a conclusion.
"""

import argparse
import csv
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.toys import COUNT, KEY, SIZES, distances, held_out, trial
from experiments.trials import (
    Row,
    Trial,
    command_line,
    conclude,
    draw_by_trial,
    file_of,
    paired,
    run_trial,
    summary,
    write_table,
)
from lsgm_jax.sampling.run import Run
from lsgm_jax.sampling.sample import compile_sampling

TOY = "gaussians"
MASSES, VARIANCES = (0.25, 1.0, 0.0625), (0.04, 1.0, 0.4)
WEIGHTINGS: dict[str, dict[str, Any]] = {
    "unweighted": {},
    "likelihood": {
        "objective.weighting": "likelihood",
        "density.name": "defensive",
        "density.t_min": 1e-5,
    },
}
MATCHINGS = ("hybrid", "plain")
SOLVERS = {"sscs": ("SSCS", 50), "ode": ("Heun", 25)}  # both at an NFE of 50, on a quadratic grid
KEYS = {
    "nelbo": "test NELBO, nats",
    "sscs": "1000 W, SSCS",
    "ode": "1000 W, ODE",
    "loss_spread": "spread of the loss over its mean",
    "gradient_median": "norm of the gradient, median",
    "gradient_largest": "largest",
}


def constants(mass: float, variance: float) -> Trial:
    """Builds the trial of a mass and a variance; the default pair is the trial of the comparison with VP."""
    base = trial(TOY, "CLD")
    if (mass, variance) == (0.25, 0.04):
        return base
    fields = {"process.mass": mass, "process.v0_var_scale": variance}
    return Trial(f"mass-{mass:g}-variance-{variance:g}", {**base.fields, **fields})


def matching(name: str, weighting: str) -> Trial:
    """Builds the trial of hybrid or plain score matching without gradient clipping."""
    fields = {"objective.matching": name, "optimiser.clip": 0.0, **WEIGHTINGS[weighting]}
    return Trial(f"{name}-{weighting}", {**trial(TOY, "CLD").fields, **fields})


CONSTANTS = [constants(mass, variance) for variance in VARIANCES for mass in MASSES]
OBJECTIVES = [matching(name, weighting) for weighting in WEIGHTINGS for name in MATCHINGS]


def second_half(path: pathlib.Path) -> dict[str, float]:
    """Computes spread over mean of the loss, and median and maximum of the gradient norm, over the second half."""
    with path.open(newline="") as file:
        logged = [row for row in csv.DictReader(file) if row["split"] == "train"]
    logged = logged[len(logged) // 2 :]
    loss, gradient = (np.array([float(row[name]) for row in logged]) for name in ("loss", "gradient_norm"))
    return {
        "loss_spread": float(loss.std() / abs(loss.mean())),
        "gradient_median": float(np.median(gradient)),
        "gradient_largest": float(gradient.max()),
    }


def sample_distances(run: Run, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Computes the distance of samples to the test split in thousandths, by solver."""
    found, params = {}, run.best()[0]
    for name, (solver, steps) in SOLVERS.items():
        fields = {"solver.name": solver, "steps.name": "quadratic", "steps.steps": steps}
        chosen = run.overridden([f"--config.{key}={value}" for key, value in fields.items()])
        x, _ = compile_sampling(chosen, params, COUNT[options.size])[0](params, jax.random.key(seed))
        found[name] = 1e3 * distances(np.asarray(x), held_out(options, TOY))[KEY]
    return found


def measure(options: argparse.Namespace) -> list[Row]:
    """Runs every trial with every seed and returns the rows."""
    rows = []
    for seed in options.seeds:
        for each in (*OBJECTIVES, *CONSTANTS):
            report = run_trial(each, SIZES[options.size], seed, options.out, metrics=("nelbo",))
            row = {"trial": each.name, "seed": seed, **dict.fromkeys(KEYS, np.nan)}
            workdir = options.out / f"seed{seed}" / each.name
            row |= second_half(workdir / "metrics.csv")
            if not report["diverged"]:
                row["nelbo"] = report["nelbo_sgm"]
                row |= sample_distances(Run.open(workdir), options, seed)
            rows.append({**row, "diverged": report["diverged"]})
            write_table(file_of(options, "csv"), rows)
    return rows


def conclusions(rows: list[Row]) -> list[str]:
    """Compares hybrid with plain score matching, and lists diverged trials."""
    lines = []
    for weighting in WEIGHTINGS:
        names = [f"{name}-{weighting}" for name in MATCHINGS]
        compared = ", ".join(
            f"{heading} {paired(rows, names[0], names[1], key)}" for key, heading in KEYS.items()
        )
        lines.append(f"{names[0]} minus {names[1]}: {compared}.")
    diverged = sorted({row["trial"] for row in rows if row["diverged"]})
    lines.append(
        f"Diverged: {', '.join(diverged) or 'none'} (the paper: plain score matching is not stable)."
    )
    return lines


def main() -> None:
    """Trains, measures, draws and concludes."""
    options = command_line(__doc__, "cld_ablation")
    rows = measure(options)
    draw_by_trial(rows, {key: KEYS[key] for key in ("nelbo", "sscs", "ode")}, file_of(options, "png"))
    conclude(options, summary(rows, KEYS), conclusions(rows))


if __name__ == "__main__":
    main()
