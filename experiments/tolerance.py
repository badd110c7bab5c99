"""NFE, error and sample quality by tolerance of the adaptive solver (LSGM's Figure on NFE).

python -m experiments.tolerance --out=runs/trials --size=cpu --seeds=0,1,2

For every seed one LSGM is trained and sampled by Dopri5 and Tsit5, with one step size for the whole batch, as in the
published code, and with separate steps for every sample. Writes tolerance_batch.csv, tolerance_sample.csv,
tolerance.png and tolerance.md with a conclusion.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from experiments.trials import (
    SIZES,
    Trial,
    command_line,
    conclude,
    figure,
    file_of,
    over_seeds,
    run_trial,
    write_table,
)
from lsgm_jax.evaluation.solver_study import make_settings, study
from lsgm_jax.sampling.run import Run

SOLVERS = ("Dopri5", "Tsit5")
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
COUNT = {"quick": 32, "cpu": 1000, "gpu": 1000}


def measure(options: argparse.Namespace, per: str) -> list[dict[str, Any]]:
    """Runs every solver and tolerance with every seed and returns the rows."""
    rows = []
    for seed in options.seeds:
        run_trial(Trial("lsgm", {}), SIZES[options.size], seed, options.out, metrics=("nelbo",))
        workdir = options.out / f"seed{seed}" / "lsgm"
        run = Run.open(workdir, ["--config.steps.name=adaptive", f"--config.steps.per={per}"])
        settings = make_settings(run, SOLVERS, nfe=(), rtol=TOLERANCES, grid="quadratic")
        for row in study(run, settings, COUNT[options.size], seed, workdir / f"tolerance_{per}"):
            rows.append({"seed": seed, "steps_per": per, **row._asdict()})
        write_table(options.out / f"{options.name}_{per}.csv", rows)
    return rows


def column(rows: Sequence[dict[str, Any]], solver: str, setting: str, key: str) -> list[float]:
    """Returns one value per seed."""
    return [row[key] for row in rows if (row["solver"], row["setting"]) == (solver, setting)]


def mean(rows: Sequence[dict[str, Any]], solver: str, setting: str, key: str) -> tuple[float, float]:
    """Computes mean and standard error over the seeds."""
    return over_seeds(column(rows, solver, setting, key))


def compare(rows: Sequence[dict[str, Any]], solver: str, loose: float) -> str:
    """Compares NFE and energy distance of a loose tolerance with the tightest, paired by seed."""
    settings = [f"tolerance {tolerance:g}" for tolerance in (loose, TOLERANCES[-1])]
    fewer = mean(rows, solver, settings[1], "nfe")[0] / mean(rows, solver, settings[0], "nfe")[0]
    pairs = zip(*(column(rows, solver, setting, "energy_distance") for setting in settings), strict=True)
    gap, error = over_seeds([left - right for left, right in pairs])
    return (
        f"{solver}, {settings[0]} against {TOLERANCES[-1]:g}: {fewer:.1f} times fewer evaluations, energy distance to "
        f"the data {gap:+.4f} ± {error:.4f} (the paper: a loose tolerance costs no quality)."
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the rows in Markdown, one line per solver and tolerance."""
    keys = {
        "nfe": "NFE of the batch",
        "nfe_mean": "NFE of a sample",
        "rms_latent": "RMS to the exact latents",
        "energy_distance": "energy distance to the test split",
    }
    lines = ["| solver, tolerance | " + " | ".join(keys.values()) + " |", "|---" * (len(keys) + 1) + "|"]
    for solver, setting in dict.fromkeys((row["solver"], row["setting"]) for row in rows):
        cells = ("{:.4g} ± {:.2g}".format(*mean(rows, solver, setting, key)) for key in keys)
        lines.append(f"| {solver}, {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, draws and concludes."""
    options = command_line(__doc__, "tolerance")
    found = {per: measure(options, per) for per in ("batch", "sample")}
    with figure(file_of(options, "png"), columns=2) as axes:
        for per, rows in found.items():
            for solver in SOLVERS:
                settings = list(dict.fromkeys(row["setting"] for row in rows if row["solver"] == solver))
                nfe = [mean(rows, solver, setting, "nfe")[0] for setting in settings]
                for axis, key in zip(axes, ("rms_latent", "energy_distance"), strict=True):
                    values = [mean(rows, solver, setting, key)[0] for setting in settings]
                    axis.plot(nfe, values, "o-", label=f"{solver}, steps per {per}")
        for axis, label in zip(
            axes, ("RMS to the exact latents", "energy distance to the test split"), strict=True
        ):
            axis.set(xlabel="NFE", ylabel=label, xscale="log")
            axis.legend()
        axes[0].set_yscale("log")
    lines = [compare(found["batch"], solver, loose) for solver in SOLVERS for loose in TOLERANCES[1:3]]
    conclude(options, "\n\n".join(f"Steps per {per}:\n\n{table(rows)}" for per, rows in found.items()), lines)


if __name__ == "__main__":
    main()
