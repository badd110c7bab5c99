"""CLD-SGM against VP on points in the plane: sample quality metrics by NFE (in the format of CLD's Table 3).

python -m experiments.cld_toys --out=runs/toys --size=cpu --seeds=0,1,2

On every distribution CLD and VP are trained with the same network, number of steps and batches, and sampled by every
solver with an NFE of 20, 50, 150 and 500. All solvers of a seed start from the same noise. The metrics are the sliced
Wasserstein distance and the energy distance to the test split, next to those of equally many fresh draws of the data.
Writes cld_toys.csv, cld_toys.png and cld_toys.md with a conclusion.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.toys import (
    COUNT,
    KEY,
    METRICS,
    PROCESSES,
    TOYS,
    by_seed,
    distances,
    held_out,
    nfe_axis,
    trained,
)
from experiments.trials import (
    Row,
    command_line,
    conclude,
    figure,
    file_of,
    over_seeds,
    read_table,
    thousandths,
    write_table,
)
from lsgm_jax.data.points import DISTRIBUTIONS
from lsgm_jax.sampling.run import Run
from lsgm_jax.sampling.sample import compile_sampling

BUDGETS = {"quick": (5, 10), "cpu": (20, 50, 150, 500), "gpu": (20, 50, 150, 500)}
TOLERANCES = (1e-2, 1e-3, 1e-4)
NEAR = 1.5
FLOOR = {"process": "data", "solver": "fresh draws"}


class Line(NamedTuple):
    """A solver with its time grid: a line in the figure."""

    name: str
    solver: str
    grid: str  # name of a time grid, or "adaptive"
    order: int | None = None  # for solvers with several orders


LINES = {
    "CLD": [
        Line("EM, uniform", "EulerMaruyama", "linear"),
        Line("EM, quadratic", "EulerMaruyama", "quadratic"),
        Line("SSCS, uniform", "SSCS", "linear"),
        Line("SSCS, quadratic", "SSCS", "quadratic"),
        Line("SSCS of order 2, quadratic", "SSCS", "quadratic", order=2),
        Line("gDDIM, quadratic", "GDDIM", "quadratic"),
        Line("ODE by Heun, quadratic", "Heun", "quadratic"),
        Line("ODE by Tsit5, adaptive", "Tsit5", "adaptive"),
    ],
    "VP": [
        Line("EM, quadratic", "EulerMaruyama", "quadratic"),
        Line("DDIM, quadratic", "DDIM", "quadratic"),
        Line("ODE by Heun, quadratic", "Heun", "quadratic"),
        Line("ODE by Tsit5, adaptive", "Tsit5", "adaptive"),
    ],
}


def settings(run: Run, line: Line, budgets: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Returns the settings of a line: their names and config overrides."""
    chosen = [f"--config.solver.name={line.solver}", f"--config.steps.name={line.grid}"]
    if line.order is not None:
        chosen.append(f"--config.solver.order={line.order}")
    if line.grid == "adaptive":
        chosen.append("--config.steps.per=batch")
        both = "--config.steps.rtol={0} --config.steps.atol={0}"
        return [(f"tolerance {rtol:g}", [*chosen, *both.format(rtol).split()]) for rtol in TOLERANCES]
    cost = run.overridden([*chosen, "--config.steps.steps=1"]).experiment.sampler.method.cost
    steps = {nfe: (nfe - cost.first - cost.extra) // cost.per_step for nfe in budgets}
    return [(f"NFE {nfe}", [*chosen, f"--config.steps.steps={count}"]) for nfe, count in steps.items()]


def measure(options: argparse.Namespace, process: str, rows: list[Row]) -> None:
    """Measures every line and NFE on every distribution and seed; adds missing rows to `rows` and the CSV."""
    one, params = trained(options, process)
    budgets, known = BUDGETS[options.size], {identity(row) for row in rows}
    todo = [(line.name, *setting) for line in LINES[process] for setting in settings(one, line, budgets)]
    for name, setting, overrides in tqdm(todo, desc=f"solvers of {process}"):
        lacking = [where for where in params if (*where, process, name, setting) not in known]
        if not lacking:
            continue
        draw, _ = compile_sampling(one.overridden(overrides), params[lacking[0]], COUNT[options.size])
        for toy, seed in lacking:
            x, solution = draw(params[toy, seed], jax.random.key(seed))
            found = {"nfe": int(solution.nfe), "failed": int((~solution.success).sum())}
            found |= distances(np.asarray(x), held_out(options, toy))
            rows.append(make_row(toy, seed, process, name, setting, found))
        write_table(file_of(options, "csv"), rows)


def make_row(
    toy: str, seed: int, process: str, solver: str, setting: str, found: dict[str, int | float]
) -> Row:
    """Returns a row of the CSV."""
    return {"toy": toy, "seed": seed, "process": process, "solver": solver, "setting": setting, **found}


def identity(row: Row) -> tuple[str, int, str, str, str]:
    """Returns the unique key of a row."""
    return row["toy"], row["seed"], row["process"], row["solver"], row["setting"]


def add_floor(options: argparse.Namespace, rows: list[Row]) -> None:
    """Adds the distances of equally many fresh draws of the data, the best that a perfect model can reach."""
    known = {identity(row) for row in rows}
    for seed in options.seeds:
        for toy in TOYS:
            if (toy, seed, FLOOR["process"], FLOOR["solver"], "") in known:
                continue
            drawn = DISTRIBUTIONS[toy].draw(np.random.default_rng([seed, 1]), COUNT[options.size])
            found = {"nfe": 0, "failed": 0, **distances(drawn, held_out(options, toy))}
            rows.append(make_row(toy, seed, FLOOR["process"], FLOOR["solver"], "", found))
    write_table(file_of(options, "csv"), rows)


def table(rows: Sequence[Row], toy: str, key: str, budgets: Sequence[int]) -> str:
    """Formats a metric in Markdown, one line per process and solver: thousandths, mean ± standard error over seeds."""
    lines = ["| solver | " + " | ".join(map(str, budgets)) + " |", "|---" * (len(budgets) + 1) + "|"]
    for process, of_process in LINES.items():
        for line in of_process:
            where = {"toy": toy, "process": process, "solver": line.name}
            if line.grid == "adaptive":
                cells = [
                    adaptive_cell(rows, key, {**where, "setting": f"tolerance {r:g}"}) for r in TOLERANCES
                ]
            else:
                cells = [thousandths(by_seed(rows, key, **where, setting=f"NFE {nfe}")) for nfe in budgets]
            cells += [""] * (len(budgets) - len(cells))
            lines.append(f"| {process}, {line.name} | " + " | ".join(cells[: len(budgets)]) + " |")
    floor = thousandths(by_seed(rows, key, toy=toy, **FLOOR))
    return "\n".join([*lines, f"| fresh draws of the data | {floor} |" + " |" * (len(budgets) - 1)])


def adaptive_cell(rows: Sequence[Row], key: str, where: dict[str, str]) -> str:
    """Formats the cell of an adaptive solver, with its NFE."""
    nfe, _ = over_seeds(by_seed(rows, "nfe", **where))
    return f"{thousandths(by_seed(rows, key, **where))} (NFE {nfe:.0f})"


def conclusions(rows: Sequence[Row], budgets: Sequence[int]) -> list[str]:
    """Lists the lowest NFE at which each line comes near the data, on average over distributions and seeds."""
    mean = lambda **wanted: over_seeds(by_seed(rows, KEY, **wanted))[0]
    floor, lines = mean(**FLOOR), []
    for process, of_process in LINES.items():
        for line in of_process:
            where = {"process": process, "solver": line.name}
            if line.grid != "adaptive":
                enough = [nfe for nfe in budgets if mean(**where, setting=f"NFE {nfe}") < NEAR * floor]
                lines.append(f"{process}, {line.name}: {enough[0] if enough else 'more than tried'}")
    return [f"Within {NEAR} times the mean distance of fresh draws, by NFE: {'; '.join(lines)}."]


def draw(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Draws one panel per distribution."""
    lines = [(process, line.name) for process, of_process in LINES.items() for line in of_process]
    with figure(file_of(options, "png"), columns=len(TOYS), width=4.2, height=4.6) as axes:
        for axis, toy in zip(axes, TOYS, strict=True):
            for index, (process, solver) in enumerate(lines):
                where = {"toy": toy, "process": process, "solver": solver}
                names = dict.fromkeys(row["setting"] for row in rows if row["solver"] == solver)
                values = [
                    [by_seed(rows, key, **where, setting=name) for name in names] for key in ("nfe", KEY)
                ]
                x, y = ([over_seeds(each)[0] for each in of if each] for of in values)
                style = "o-" if process == "CLD" else "s--"
                axis.plot(x, y, style, ms=4, color=f"C{index % 10}", label=f"{process}, {solver}")
            floor, _ = over_seeds(by_seed(rows, KEY, toy=toy, **FLOOR))
            axis.axhline(floor, color="grey", linestyle=":", label="fresh draws of the data")
            nfe_axis(axis, BUDGETS[options.size], toy)
        axes[0].set_ylabel("sliced Wasserstein distance to the test split")
        axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def main() -> None:
    """Trains, measures, draws and concludes."""
    options = command_line(__doc__, "cld_toys")
    budgets, rows = BUDGETS[options.size], read_table(file_of(options, "csv"))
    for process in PROCESSES:
        measure(options, process, rows)
    add_floor(options, rows)
    draw(options, rows)
    tables = []
    for key, title in METRICS.items():
        tables += [f"{toy}, {title} by NFE:\n\n{table(rows, toy, key, budgets)}" for toy in TOYS]
    conclude(options, "In thousandths.\n\n" + "\n\n".join(tables), conclusions(rows, budgets))


if __name__ == "__main__":
    main()
