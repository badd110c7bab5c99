"""At which order every solver converges to the exact moments of Normal data.

python -m experiments.solver_orders

Exact noise prediction makes a solve affine in the prior's draw and in every draw of noise, so mean and variance of what
it samples are found without sampling: one row of the batch has no noise at all, and every other row one unit draw.
Writes docs/solver_orders.md. Two minutes on two CPU cores.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import State
from lsgm_jax.diffusions.linear import Process
from lsgm_jax.diffusions.vp import VP
from lsgm_jax.solvers.grids import Grid, Linear, LogSNR, Quadratic
from lsgm_jax.solvers.method import Method
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, solve_to_data
from lsgm_jax.solvers.terms import Index
from tests.solvers.exact import exact_eps, moments

T_MIN = 0.02
PARTS = 2  # draws per step; no solver here takes more


class Setting(NamedTuple):
    """Where an order is measured: fine enough for it to show, and not so fine that rounding does."""

    process: Process
    grid: Callable[..., Grid]
    counts: tuple[int, ...]

    def label(self) -> str:
        """In words."""
        rates = f"{self.process.beta_min:g} to {self.process.beta_max:g}"
        return f"beta {rates}, {self.grid.__name__}, {', '.join(map(str, self.counts))} steps"


GENTLE = VP(beta_min=0.5, beta_max=10.0)
SETTING = Setting(GENTLE, Linear, (32, 64, 128))
SETTINGS = {
    "Tsit5": Setting(GENTLE, Linear, (16, 32, 64)),
    "Dopri5": Setting(GENTLE, Linear, (16, 32, 64)),
    "PLMS": Setting(GENTLE, Quadratic, (32, 64, 128)),
    "Dopri8": Setting(GENTLE, Linear, (8, 16, 32)),
    # The first steps of these are of lower order, which shows the less the more noise there is at t = 1.
    **{name: Setting(VP(), LogSNR, (80, 160, 320)) for name in ("DEIS", "DPMSolverPP", "UniPC")},
}


class Case(NamedTuple):
    """A method with its settings, which may depend on the number of steps."""

    label: str
    setting: Setting
    build: Callable[[int], Method]


@dataclasses.dataclass(frozen=True)
class UnitDraws:
    """Noise of which row 2 + i of the batch has a one in the i-th draw, and nothing else."""

    def draw(self, step: Index, part: int, like: State) -> State:
        """Zeros and a single one."""
        row = 2 + PARTS * step + part
        return jnp.zeros_like(like).at[row].set(1.0)


def cases() -> list[Case]:
    """Every method for processes of one coordinate, in every order and with and without noise."""
    variants: dict[str, list[tuple[str, Callable[[int], Method]]]] = {
        "DDIM": [("", lambda n: METHODS["DDIM"]()), ("eta=0.5", lambda n: METHODS["DDIM"](eta=0.5))],
        "EDMHeun": [
            ("", lambda n: METHODS["EDMHeun"]()),
            ("churn=8/steps", lambda n: METHODS["EDMHeun"](churn=8.0 / n)),
        ],
        "PredictorCorrector": [
            (f"{predictor}, corrections=0", lambda n, p=predictor: _predictor(p))
            for predictor in ("reverse_diffusion", "ancestral")
        ],
        **{
            name: [(f"order={k}", lambda n, name=name, k=k: METHODS[name](order=k)) for k in orders]
            for name, orders in {"DEIS": (1, 2, 3), "DPMSolverPP": (1, 2, 3), "UniPC": (2, 3)}.items()
        },
    }
    names = [name for name in METHODS if METHODS[name]().refuse(GENTLE) is None]
    return [
        Case(f"{name} {note}".strip(), SETTINGS.get(name, SETTING), build)
        for name in names
        for note, build in variants.get(name, [("", lambda n, name=name: METHODS[name]())])
    ]


def _predictor(predictor: str) -> Method:
    return METHODS["PredictorCorrector"](predictor=predictor, corrections=0)


def error(method: Method, process: Process, grid: Grid) -> float:
    """Largest error of mean and standard deviation, from the exact marginal at t = 1."""
    mean_1, cov_1 = (float(value.squeeze()) for value in moments(process, jnp.ones(())))
    start = jnp.full((2 + PARTS * grid.steps, 1), mean_1).at[1].add(cov_1**0.5)
    sampler = Sampler(method=method, steps=grid, t_min=T_MIN)
    solve = jax.jit(lambda z_1: solve_to_data(sampler, process, exact_eps(process), z_1, UnitDraws()).z_0)
    end = solve(start)[:, 0]
    mean, cov = (float(value.squeeze()) for value in moments(process, jnp.asarray(T_MIN)))
    deviation = float(jnp.linalg.norm(end[1:] - end[0]))
    return max(abs(float(end[0]) - mean), abs(deviation - cov**0.5))


def slope(build: Callable[[int], Method], setting: Setting) -> float:
    """Order that shows in the errors for the setting's numbers of steps; needs float64."""
    process, grid, counts = setting
    errors = [error(build(n), process, grid(steps=n)) for n in counts]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


COLUMNS = """
| solver | order | slope | evaluations per step | process and steps |
|---|---|---|---|---|
"""
HEAD = f"""# Orders of the solvers

Written by `python -m experiments.solver_orders`. Every solver samples Normal data by the exact noise prediction,
from the exact marginal at $t=1$ to $t_{{\\min}}={T_MIN}$ of a variance-preserving process. The slope is that of the
larger error, of mean or standard deviation, against the number of steps; both are computed, not sampled. Where
`order` is a setting, the column of that name is what the error falls by; UniPC's corrector adds one.
{COLUMNS}"""
START = f"""
The first steps of multistep methods are of lower order. What Euler's first step leaves falls with the square of the
number of steps, but is small: it shows where there is some signal at $t=1$ and the steps are many. UniPC corrects it.
{COLUMNS}"""


def row(case: Case) -> str:
    """A line of the table."""
    method = case.build(case.setting.counts[0])
    per_step, first, extra = method.cost
    evaluations = f"{per_step}" + (f" + {first + extra} once" if first + extra else "")
    measured = slope(case.build, case.setting)
    line = f"| {case.label} | {method.order} | {measured:.2f} | {evaluations} | {case.setting.label()} |\n"
    print(line, end="", flush=True)
    return line


def main() -> None:
    """Writes the tables."""
    jax.config.update("jax_enable_x64", True)
    signal = Setting(GENTLE, Quadratic, (160, 320, 640))
    highest = [case._replace(setting=signal) for case in cases() if case.label.endswith("order=3")]
    tables = (head + "".join(map(row, rows)) for head, rows in ((HEAD, cases()), (START, highest)))
    pathlib.Path("docs/solver_orders.md").write_text("".join(tables))


if __name__ == "__main__":
    main()
