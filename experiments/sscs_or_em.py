"""SSCS against Euler and Maruyama's method for CLD in the plane, with samples enough to tell them apart.

python -m experiments.sscs_or_em --out=runs/toys --size=cpu --seeds=0,1,2

On the models of cld_toys, whose few thousand samples leave a distance to the data that hides what solvers differ by.
Both start with the same noise; distances are to many fresh draws of the data. Writes sscs_or_em.csv, sscs_or_em.png and
sscs_or_em.md with a conclusion.
"""

import argparse
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from experiments.toys import TOYS, trained
from experiments.trials import (
    Row,
    command_line,
    conclude,
    difference,
    figure,
    file_of,
    over_seeds,
    read_table,
    write_table,
)
from lsgm_jax.build import build_sampler
from lsgm_jax.config import override
from lsgm_jax.data.points import DISTRIBUTIONS
from lsgm_jax.evaluation.distances import sliced_wasserstein
from lsgm_jax.run import compile_draw

SOLVERS = {"EM": "EulerMaruyama", "SSCS": "SSCS"}
GRIDS = ("linear", "quadratic")
BUDGETS = (20, 50, 150)
COUNT = {"quick": 400, "cpu": 40_000, "gpu": 200_000}  # samples of each
REFERENCE = 100_000  # fresh draws of the data


def measure(options: argparse.Namespace, rows: list[Row]) -> None:
    """Adds to `rows`, and to the CSV, what they lack."""
    count, (one, params) = COUNT[options.size], trained(options, "CLD")
    known = {(row["toy"], row["seed"], row["grid"], row["nfe"]) for row in rows}
    for grid, nfe in tqdm([(grid, nfe) for grid in GRIDS for nfe in BUDGETS], desc="solvers"):
        lacking = [where for where in params if (*where, grid, nfe) not in known]
        steps = [f"--config.steps.name={grid}", f"--config.steps.steps={nfe}"]
        draws = {
            name: compile_draw(one, params[lacking[0]], build_sampler(override(one.config, chosen)), count)[0]
            for name, solver in SOLVERS.items()
            for chosen in [[f"--config.solver.name={solver}", *steps]]
            if lacking
        }
        for toy, seed in lacking:
            key = jax.random.key(seed)
            found = {name: np.asarray(draw(params[toy, seed], key)[0]) for name, draw in draws.items()}
            found["data"] = DISTRIBUTIONS[toy].draw(np.random.default_rng([seed, 1]), count)
            reference = DISTRIBUTIONS[toy].draw(np.random.default_rng([seed, 2]), REFERENCE)
            far = {name: sliced_wasserstein(x, reference) for name, x in found.items()}
            rows.append({"toy": toy, "seed": seed, "grid": grid, "nfe": nfe, **far})
            write_table(file_of(options, "csv"), rows)


def by_seed(rows: Sequence[Row], name: str, toy: str, grid: str, nfe: int) -> list[float]:
    """One value per seed, in their order."""
    chosen = [row for row in rows if (row["toy"], row["grid"], row["nfe"]) == (toy, grid, nfe)]
    return [row[name] for row in sorted(chosen, key=lambda row: row["seed"])]


def table(rows: Sequence[Row]) -> str:
    """In Markdown, thousandths: both solvers, their difference paired by seed, and what fresh draws leave."""
    lines = ["| distribution | steps | NFE | EM | SSCS | SSCS less EM | fresh draws |", "|---" * 7 + "|"]
    for toy in TOYS:
        for grid in GRIDS:
            for nfe in BUDGETS:
                em, sscs, data = (by_seed(rows, name, toy, grid, nfe) for name in (*SOLVERS, "data"))
                cells = [
                    "{:.1f} ± {:.1f}".format(*over_seeds([1e3 * value for value in of]))
                    for of in (em, sscs, data)
                ]
                cells.insert(2, difference(sscs, em, unit=1e3))
                lines.append(f"| {toy} | {grid} | {nfe} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conclusions(rows: Sequence[Row]) -> list[str]:
    """How often SSCS is ahead."""
    lines = []
    for grid in GRIDS:
        counts = []
        for nfe in BUDGETS:
            at = [row for row in rows if (row["grid"], row["nfe"]) == (grid, nfe)]
            ahead = sum(row["SSCS"] < row["EM"] for row in at)
            counts.append(f"{ahead} of {len(at)} at {nfe} NFE")
        said = " (the paper, on CIFAR-10: ahead at 50 to 500)" if grid == "quadratic" else ""
        lines.append(f"{grid} steps: SSCS is nearer to the data than EM in {', '.join(counts)}{said}.")
    return lines


def draw(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """One panel per distribution."""
    with figure(file_of(options, "png"), columns=len(TOYS), width=3.6) as axes:
        for axis, toy in zip(axes, TOYS, strict=True):
            for grid, style in zip(GRIDS, ("o--", "o-"), strict=True):
                for index, name in enumerate(SOLVERS):
                    values = [over_seeds(by_seed(rows, name, toy, grid, nfe)) for nfe in BUDGETS]
                    mean, error = np.transpose(values)
                    axis.errorbar(BUDGETS, mean, error, fmt=style, color=f"C{index}", label=f"{name}, {grid}")
            floor = [over_seeds(by_seed(rows, "data", toy, "quadratic", nfe))[0] for nfe in BUDGETS]
            axis.plot(BUDGETS, floor, ":", color="grey", label="fresh draws")
            axis.set(xscale="log", yscale="log", xlabel="NFE", title=toy)
        axes[0].set_ylabel("sliced Wasserstein distance")
        axes[-1].legend(fontsize=8)


def main() -> None:
    """Trains, measures, draws and concludes."""
    options = command_line(__doc__, "sscs_or_em")
    rows = read_table(file_of(options, "csv"))
    measure(options, rows)
    draw(options, rows)
    conclude(options, "Thousandths.\n\n" + table(rows), conclusions(rows))


if __name__ == "__main__":
    main()
