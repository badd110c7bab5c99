"""CLD and VP at low NFE on points in the plane, with enough samples to separate SSCS, EM and other solvers.

python -m experiments.few_steps --out=runs/toys --size=cpu --seeds=0,1,2

It uses the models of cld_toys, where a few thousand samples are too few to resolve differences between good solvers,
and the mixture of Gaussians with its exact score, where the solver is the only source of error. All solvers of a
process start from the same noise. Distances are to many fresh draws of the data. Writes few_steps.csv, few_steps.png
and few_steps.md with a conclusion.
"""

import argparse
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from experiments.exact_score import exact_draw
from experiments.toys import PROCESSES, SIZES, TOYS, by_seed, nfe_axis, trained, trial
from experiments.trials import (
    Row,
    command_line,
    conclude,
    difference,
    figure,
    file_of,
    load,
    over_seeds,
    read_table,
    thousandths,
    write_table,
)
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import override
from lsgm_jax.data.points import DISTRIBUTIONS, Distribution
from lsgm_jax.evaluation.fid import sliced_wasserstein
from lsgm_jax.sampling.sample import compile_sampling

# Process and solver, with the time grids to compare.
SOLVERS = {
    ("CLD", "EulerMaruyama"): ("linear", "quadratic"),
    ("CLD", "SSCS"): ("linear", "quadratic"),
    ("CLD", "GDDIM"): ("quadratic",),
    ("VP", "EulerMaruyama"): ("quadratic",),
    ("VP", "DDIM"): ("quadratic",),
}
LINES = [f"{process} {solver} {grid}" for (process, solver), grids in SOLVERS.items() for grid in grids]
BUDGETS = (20, 50, 150)  # NFE; all of these solvers take one evaluation per step
COUNT = {"quick": 400, "cpu": 40_000, "gpu": 200_000}  # samples per setting
REFERENCE, FLOOR = 100_000, "fresh draws"  # samples of the data
EXACT = "gaussians, exact score"
COLUMNS = (*TOYS, EXACT)
# Left, right, and result of the papers on CIFAR-10 for left minus right.
CLAIMS = [
    ("CLD SSCS quadratic", "CLD EulerMaruyama quadratic", "CLD: below zero at 50 and 150"),
    ("CLD SSCS linear", "CLD EulerMaruyama linear", ""),
    ("CLD SSCS quadratic", "CLD SSCS linear", "CLD: below zero at 50"),
    ("CLD SSCS quadratic", "VP EulerMaruyama quadratic", "CLD: below zero at 50 and 150"),
    ("CLD EulerMaruyama quadratic", "VP EulerMaruyama quadratic", "CLD: above zero at 50 and 150"),
    ("CLD GDDIM quadratic", "CLD SSCS quadratic", "gDDIM: below zero at 20 and 50"),
    ("CLD GDDIM quadratic", "VP DDIM quadratic", "gDDIM: above zero at 20, below at 50"),
]


def measure(options: argparse.Namespace, process: str, rows: list[Row]) -> None:
    """Measures the trained models of a process; adds missing rows to `rows` and the CSV."""
    count, (one, params) = COUNT[options.size], trained(options, process)
    known = {(row["toy"], row["seed"], row["line"], row["nfe"]) for row in rows}
    for line, nfe, chosen in tqdm(jobs(process), desc=f"solvers of {process}"):
        lacking = [where for where in params if (*where, line, nfe) not in known]
        if not lacking:
            continue
        draw, _ = compile_sampling(one.overridden(chosen), params[lacking[0]], count)
        for toy, seed in lacking:
            x, _ = draw(params[toy, seed], jax.random.key(seed))
            rows.append(make_row(toy, seed, line, nfe, np.asarray(x)))
        write_table(file_of(options, "csv"), rows)


def measure_exact(options: argparse.Namespace, process: str, rows: list[Row]) -> None:
    """Measures the exact score of the mixture; adds missing rows as `measure` does."""
    config = load(SIZES[options.size], trial("gaussians", process).fields)
    known = {(row["seed"], row["line"], row["nfe"]) for row in rows if row["toy"] == EXACT}
    for line, nfe, chosen in tqdm(jobs(process), desc=f"solvers of {process}, exact score"):
        lacking = [seed for seed in options.seeds if (seed, line, nfe) not in known]
        planned = experiment(override(config, chosen))
        draw = exact_draw(planned.model.prior.process, planned.sampler, COUNT[options.size])
        for seed in lacking:
            rows.append(make_row(EXACT, seed, line, nfe, np.asarray(draw(jax.random.key(seed)))))
        write_table(file_of(options, "csv"), rows)


def jobs(process: str) -> list[tuple[str, int, list[str]]]:
    """Returns lines and NFE of a process, with their config overrides."""
    made = []
    for (of, solver), grids in SOLVERS.items():
        for grid in grids if of == process else ():
            for nfe in BUDGETS:
                fields = {"solver.name": solver, "steps.name": grid, "steps.steps": nfe}
                chosen = [f"--config.{name}={value}" for name, value in fields.items()]
                made.append((f"{process} {solver} {grid}", nfe, chosen))
    return made


def make_row(toy: str, seed: int, line: str, nfe: int, x: np.ndarray) -> Row:
    """Returns a row of the CSV."""
    reference = data(toy).draw(np.random.default_rng([seed, 2]), REFERENCE)
    far = sliced_wasserstein(x, reference)
    return {"toy": toy, "seed": seed, "line": line, "nfe": nfe, "sliced_wasserstein": far}


def data(toy: str) -> Distribution:
    """Returns the distribution of a column."""
    return DISTRIBUTIONS["gaussians" if toy == EXACT else toy]


def add_floor(options: argparse.Namespace, rows: list[Row]) -> None:
    """Adds the distance of equally many fresh draws of the data, the best that a perfect model can reach."""
    known = {(row["toy"], row["seed"]) for row in rows if row["line"] == FLOOR}
    for toy in COLUMNS:
        for seed in options.seeds:
            if (toy, seed) not in known:
                x = data(toy).draw(np.random.default_rng([seed, 1]), COUNT[options.size])
                rows.append(make_row(toy, seed, FLOOR, 0, x))
    write_table(file_of(options, "csv"), rows)


def at(rows: Sequence[Row], toy: str, line: str, nfe: int) -> list[float]:
    """Returns one value per seed, ordered by seed."""
    return by_seed(rows, "sliced_wasserstein", toy=toy, line=line, nfe=nfe)


def table(rows: Sequence[Row]) -> str:
    """Formats all lines in Markdown, in thousandths."""
    lines = ["| | NFE | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for line, nfe in [*((line, nfe) for line in LINES for nfe in BUDGETS), (FLOOR, 0)]:
        cells = [thousandths(at(rows, toy, line, nfe)) for toy in COLUMNS]
        lines.append(f"| {line} | {nfe} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compare(rows: Sequence[Row]) -> str:
    """Formats the `CLAIMS` in Markdown, in thousandths, paired by seed."""
    lines = ["| left minus right | NFE | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for left, right, _ in CLAIMS:
        for nfe in BUDGETS:
            pairs = [(at(rows, toy, left, nfe), at(rows, toy, right, nfe)) for toy in COLUMNS]
            cells = [difference(*pair, unit=1e3) for pair in pairs]
            lines.append(f"| {left} minus {right} | {nfe} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conclusions(rows: Sequence[Row]) -> list[str]:
    """Counts over all distributions and seeds how often left has a smaller distance than right."""
    lines = []
    for left, right, paper in CLAIMS:
        counts = []
        for nfe in BUDGETS:
            pairs = [
                pair
                for toy in COLUMNS
                for pair in zip(at(rows, toy, left, nfe), at(rows, toy, right, nfe), strict=True)
            ]
            counts.append(f"{sum(a < b for a, b in pairs)} of {len(pairs)} at {nfe} NFE")
        published = f" ({paper})" if paper else ""
        lines.append(f"{left} is nearer to the data than {right} in {', '.join(counts)}{published}.")
    return lines


def draw_lines(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Draws one panel per distribution."""
    with figure(file_of(options, "png"), columns=len(COLUMNS), width=3.6, height=4.0) as axes:
        for axis, toy in zip(axes, COLUMNS, strict=True):
            for index, line in enumerate(LINES):
                mean, error = np.transpose([over_seeds(at(rows, toy, line, nfe)) for nfe in BUDGETS])
                style = "o--" if line.endswith("linear") else "o-"
                axis.errorbar(
                    BUDGETS, mean, np.nan_to_num(error), fmt=style, ms=4, color=f"C{index}", label=line
                )
            floor, _ = over_seeds(at(rows, toy, FLOOR, 0))
            axis.axhline(floor, ls=":", color="grey", label=FLOOR)
            nfe_axis(axis, BUDGETS, toy)
        axes[0].set_ylabel("sliced Wasserstein distance to the data")
        axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def main() -> None:
    """Trains, measures, draws and concludes."""
    options = command_line(__doc__, "few_steps")
    rows = read_table(file_of(options, "csv"))
    for process in PROCESSES:
        measure(options, process, rows)
        measure_exact(options, process, rows)
    add_floor(options, rows)
    draw_lines(options, rows)
    conclude(options, f"Thousandths.\n\n{compare(rows)}\n\n{table(rows)}", conclusions(rows))


if __name__ == "__main__":
    main()
