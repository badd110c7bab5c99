"""LSGM-CLD against LSGM with the VPSDE, with the same autoencoder, network and steps: NELBO, and quality by NFE.

python -m experiments.latent_process --out=runs/trials --size=cpu --seeds=0,1,2

All priors of a seed start from the same VAE and train jointly with it for the same number of steps: "vp" as published,
"vp-normal" with its network added to the Gaussian prediction, as in the recipe of LSGM-CLD, and "cld". Each is then
sampled by solvers of every kind at the same NFE. Writes latent_process.csv, latent_process_samples.csv,
latent_process.png and latent_process.md.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from experiments.trials import (
    SIZES,
    Setup,
    Trial,
    command_line,
    conclude,
    figure,
    file_of,
    over_seeds,
    paired,
    run_all,
    summary,
    write_table,
)
from lsgm_jax.evaluation.solver_study import make_settings, study
from lsgm_jax.sampling.run import Run

LSGM_CLD = {"quick": "digits.py:cld,quick", "cpu": "digits.py:cld", "gpu": "lsgm_cifar10.py:cld"}
TRIALS = {
    "vp": Trial("lsgm", {}),
    "vp-normal": Trial("lsgm-normal", {"objective.mixed_score": "gaussian"}),
    "cld": Trial("lsgm-cld", {}),
}
KEYS = {"nelbo": "test NELBO, nats", "fid": "FID", "nfe": "NFE of a sample", "train_seconds": "training, s"}
NFE, TOLERANCES = (10, 20, 50, 100), (1e-1, 1e-2, 1e-3)
COUNT = {"quick": 32, "cpu": 1000, "gpu": 2000}
# ODE solvers, Euler-Maruyama, and solvers for this process.
FOR_VP = ("Heun", "Tsit5", "EulerMaruyama", "Ancestral", "DDIM")
SOLVERS = {
    "vp": FOR_VP,
    "vp-normal": FOR_VP,
    "cld": ("Heun", "Tsit5", "EulerMaruyama", "SSCS", "GDDIM"),
}


def setup(size: str, process: str) -> Setup:
    """Returns the setup of an LSGM with a process, at a size."""
    config, common = SIZES[size]
    return (LSGM_CLD[size] if process == "cld" else config), common


def measure(options: argparse.Namespace, process: str) -> list[dict[str, Any]]:
    """Runs every solver at every NFE and tolerance with every seed, and returns the rows."""
    rows = []
    for seed in options.seeds:
        workdir = options.out / f"seed{seed}" / TRIALS[process].name
        run = Run.open(workdir)
        settings = make_settings(run, SOLVERS[process], NFE, TOLERANCES, grid="quadratic")
        for row in study(run, settings, COUNT[options.size], seed, workdir / "latent_process"):
            rows.append({"process": process, "seed": seed, **row._asdict()})
    return rows


def curve(rows: Sequence[dict[str, Any]], process: str, solver: str) -> list[tuple[float, float, float]]:
    """Returns (mean NFE, mean energy distance, its standard error) of every setting, ordered by NFE."""
    mine = [row for row in rows if (row["process"], row["solver"]) == (process, solver)]
    points = []
    for setting in dict.fromkeys(row["setting"] for row in mine):
        nfe, distances = (
            [row[key] for row in mine if row["setting"] == setting] for key in ("nfe", "energy_distance")
        )
        points.append((over_seeds(nfe)[0], *over_seeds(distances)))
    return sorted(points)


def sample_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the energy distance to the test split at each NFE in Markdown."""
    lines = ["| process, solver | NFE: energy distance to the test split |", "|---|---|"]
    for process, solvers in SOLVERS.items():
        for solver in solvers:
            cells = ", ".join(
                f"{nfe:.0f}: {distance:.4f} ± {error:.4f}"
                for nfe, distance, error in curve(rows, process, solver)
            )
            lines.append(f"| {process}, {solver} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Trains all priors, samples them and compares them."""
    options = command_line(__doc__, "latent_process")
    rows = []
    for process, trial in TRIALS.items():
        rows += run_all([trial], options, ("nelbo", "fid"), setup(options.size, process))
    write_table(file_of(options, "csv"), rows)
    samples = [row for process in TRIALS for row in measure(options, process)]
    write_table(options.out / f"{options.name}_samples.csv", samples)
    with figure(file_of(options, "png"), columns=3, width=5.0, height=4.2) as axes:
        for axis, (process, solvers) in zip(axes, SOLVERS.items(), strict=True):
            for solver in solvers:
                nfe, distance, error = zip(*curve(samples, process, solver), strict=True)
                axis.errorbar(nfe, distance, error, marker="o", markersize=4, label=solver)
            axis.set(xscale="log", yscale="log", xlabel="NFE", ylabel="energy distance to the test split")
            axis.set_title(f"LSGM, {process}")
            axis.legend()
        low, high = (pick(axis.get_ylim()[i] for axis in axes) for i, pick in enumerate((min, max)))
        for axis in axes:
            axis.set_ylim(low, high)
    lines = [
        f"{left} minus {right}, {heading}: {paired(rows, left, right, key)}."
        for left, right in (("lsgm-cld", "lsgm"), ("lsgm-cld", "lsgm-normal"), ("lsgm-normal", "lsgm"))
        for key, heading in KEYS.items()
    ]
    lines += [f"{row['trial']}, seed {row['seed']}: {row['diverged']}" for row in rows if row["diverged"]]
    conclude(
        options,
        summary(rows, KEYS | {"nelbo_vae": "NELBO of the VAE"}) + "\n\n" + sample_table(samples),
        lines,
    )


if __name__ == "__main__":
    main()
