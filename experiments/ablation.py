"""LSGM's ablation: process x weighting of the prior x t of the prior x t of the encoder (LSGM Table 6).

python -m experiments.ablation --out=runs/trials --size=cpu --seeds=0,1,2

Estimators are the published ones: independent t, no control variate, no gradient clipping. The name of a trial lists
the process, the weighting (ll likelihood, un unweighted, re reweighted), the density of t (uniform, or optimal:
importance sampling) and the t of the encoder (shared: that of the prior, reweighted; own: separate t, importance
sampled for the likelihood). The table includes cells for which the paper has no sampler of t. Writes ablation.csv, .png
and .md with a verdict on each claim of the paper. Sizes: quick (minutes), cpu (digits, an hour on two cores), gpu
(CIFAR-10).
"""

import math
from collections.abc import Sequence
from typing import Any

from experiments.trials import (
    Row,
    Trial,
    column,
    command_line,
    conclude,
    draw_by_trial,
    file_of,
    over_seeds,
    paired,
    run_all,
    summary,
)

PUBLISHED = {
    "objective.control_variate": False,
    "objective.spread": "independent",
    "objective.mixing_logit_init": -3.0,
    "joint_vae.clip": 0.0,
    "joint_prior.clip": 0.0,
}
PROCESSES = {"vp": ("vp", 0.01), "geometric": ("geometric_vp", 0.0)}  # name in a config, t_min
WEIGHTINGS = {"ll": "likelihood", "un": "unweighted", "re": "reweighted"}
# Weighting of the prior, density of its t, t of the encoder.
CELLS = [
    ("ll", "uniform", "shared"),
    ("ll", "optimal", "shared"),
    *(
        (weighting, times, encoder)
        for weighting in ("un", "re")
        for times in ("uniform", "optimal")
        for encoder in ("shared", "own")
    ),
]
KEYS = {"nelbo": "test NELBO, nats", "fid": "FID"}


def trial(process: str, weighting: str, times: str, encoder: str) -> Trial:
    """Builds the trial of one cell of the table."""
    name, t_min = PROCESSES[process]
    fields: dict[str, Any] = {
        **PUBLISHED,
        "process.name": name,
        "objective.weighting": WEIGHTINGS[weighting],
        "density.name": times,
        "density.t_min": t_min,
    }
    if times == "optimal":
        fields["density.weighting"] = WEIGHTINGS[weighting]
    if encoder == "own":
        fields |= {"encoder_density.name": "optimal", "encoder_density.t_min": t_min}
    return Trial("-".join((process, weighting, times, encoder)), fields)


def claims(rows: Sequence[Row]) -> list[str]:
    """Compares the table with each claim of the paper."""
    names = list(dict.fromkeys(row["trial"] for row in rows))
    finished = [name for name in names if all(math.isfinite(value) for value in column(rows, name, "nelbo"))]
    best = {key: min(finished, key=lambda name: over_seeds(column(rows, name, key))[0]) for key in KEYS}
    lines = [
        f"{best['nelbo']} has the lowest NELBO (the paper: geometric-ll-uniform-shared).",
        f"{best['fid']} has the lowest FID (the paper: one of the unweighted or reweighted VPSDE).",
        "geometric-ll-uniform-shared less vp-ll-optimal-shared, NELBO: "
        + paired(rows, "geometric-ll-uniform-shared", "vp-ll-optimal-shared", "nelbo")
        + " (the paper: below zero).",
    ]
    for process in PROCESSES:
        left, right = f"{process}-ll-optimal-shared", f"{process}-un-optimal-own"
        lines.append(
            f"{left} minus {right}: NELBO {paired(rows, left, right, 'nelbo')} (the paper: below zero), "
            f"FID {paired(rows, left, right, 'fid')} (the paper: above zero)."
        )
    for process in PROCESSES:
        for weighting in WEIGHTINGS:
            left, right = (f"{process}-{weighting}-{times}-shared" for times in ("optimal", "uniform"))
            lines.append(
                f"{left} minus {right}, NELBO: {paired(rows, left, right, 'nelbo')} (importance sampling of t)."
            )
    diverged = sorted({row["trial"] for row in rows if row["diverged"]})
    lines.append(f"Diverged: {', '.join(diverged) or 'none'} (the paper: several cells with uniform t).")
    return lines


def main() -> None:
    """Runs all cells of the table."""
    options = command_line(__doc__, "ablation")
    trials = [trial(process, *cell) for process in PROCESSES for cell in CELLS]
    rows = run_all(trials, options, metrics=("nelbo", "fid"))
    draw_by_trial(rows, KEYS, file_of(options, "png"))
    conclude(options, summary(rows, KEYS), claims(rows))


if __name__ == "__main__":
    main()
