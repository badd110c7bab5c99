"""Measures the order at which every solver converges to the exact moments of Gaussian data.

python -m experiments.solver_orders

With the exact noise prediction, a solve is affine in the prior's draw and in every draw of noise. Mean and variance of
the samples are therefore computed without sampling: one row of the batch has no noise, and every other row one unit
draw. CLD's probability flow is compared state by state, because its moments can be right where its states are not.
Writes docs/solver_orders.md. Takes two minutes of CPU time.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from experiments.exact_gaussian import converged_flow, exact_eps, moments
from lsgm_jax.arrays import State, as_state, coordinates
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.linear import Process
from lsgm_jax.processes.vp import VP
from lsgm_jax.solvers.grids import Grid, Linear, LogSNR, Quadratic
from lsgm_jax.solvers.method import Method
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, solve_to_data
from lsgm_jax.solvers.terms import Index

T_MIN = 0.02
PARTS = 2  # draws per step; no solver here takes more


class Setting(NamedTuple):
    """The process and the steps for one measurement: fine enough for the order, coarse enough for float64 rounding."""

    process: VP | CLD
    grid: Callable[..., Grid]
    counts: tuple[int, ...]
    t_min: float = T_MIN

    def label(self) -> str:
        """Returns the setting in words."""
        least, most = self.process.beta_min, self.process.beta_max
        rates = f"{least:g}" if least == most else f"{least:g} to {most:g}"
        process, counts = type(self.process).__name__, ", ".join(map(str, self.counts))
        return f"{process}, beta {rates}, {self.grid.__name__}, {counts} steps"


GENTLE = VP(beta_min=0.5, beta_max=10.0)
SETTING = Setting(GENTLE, Linear, (32, 64, 128))
SETTINGS = {
    "Tsit5": Setting(GENTLE, Linear, (16, 32, 64)),
    "Dopri5": Setting(GENTLE, Linear, (16, 32, 64)),
    "PLMS": Setting(GENTLE, Quadratic, (32, 64, 128)),
    "Dopri8": Setting(GENTLE, Linear, (8, 16, 32)),
    # The first steps of these have a lower order, which matters less the more noise there is at t = 1.
    **{name: Setting(VP(), LogSNR, (80, 160, 320)) for name in ("DEIS", "DPMSolverPP", "UniPC")},
}
# Options of the multistep methods. With `lower_order_final`, their default, the last steps leave an error of order 2.
MULTISTEP: dict[str, list[dict[str, Any]]] = {
    "DEIS": [dict(order=1), dict(order=2), dict(order=3)],
    "DPMSolverPP": [
        dict(order=1),
        dict(order=2),
        dict(order=3),
        dict(order=3, third="exact", lower_order_final=False),
    ],
    "UniPC": [
        dict(order=3),
        dict(order=2, lower_order_final=False),
        dict(order=3, lower_order_final=False),
    ],
}
# CLD's covariances vanish in the last steps, which are the hard ones: a quadratic grid, closer to the data.
CLD_COUNTS = {
    "SSCS": (32, 64, 128),
    "GDDIM": (64, 128, 256),
    "EulerMaruyama": (32, 64, 128),
    "Heun": (128, 256, 512),
}
CLD_T_MIN = 1e-3


class Case(NamedTuple):
    """A method with its options, which may depend on the number of steps."""

    label: str
    setting: Setting
    build: Callable[[int], Method]


@dataclasses.dataclass(frozen=True)
class UnitDraws:
    """Unit draws: every element of the noise is one in its own row of the batch, and zero in all other rows.

    The first 1 + `size` rows have no noise; `size` is the number of coordinates of the state.
    """

    size: int = 1

    def draw(self, step: Index, part: int, like: State) -> State:
        """Returns zeros with a single one per coordinate."""
        row = 1 + self.size * (1 + PARTS * step + part)
        return as_state([jnp.zeros_like(z).at[row + i].set(1.0) for i, z in enumerate(coordinates(like))])


def cases() -> list[Case]:
    """Returns a case for every method for processes of one coordinate, in every order, with and without noise."""
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
            name: [
                (_noted(chosen), lambda n, name=name, chosen=chosen: METHODS[name](**chosen))
                for chosen in several
            ]
            for name, several in MULTISTEP.items()
        },
    }
    names = [name for name in METHODS if METHODS[name]().refuse(GENTLE) is None]
    return [
        Case(f"{name} {note}".strip(), SETTINGS.get(name, SETTING), build)
        for name in names
        for note, build in variants.get(name, [("", lambda n, name=name: METHODS[name]())])
    ]


def _noted(options: dict[str, Any]) -> str:
    """Returns options as text."""
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _predictor(predictor: str) -> Method:
    return METHODS["PredictorCorrector"](predictor=predictor, corrections=0)


def cld_cases(process: CLD) -> list[Case]:
    """Returns cases for CLD's own methods in every order, and for one SDE and one ODE solver of diffrax."""
    orders = {"SSCS": (1, 2), "GDDIM": (1, 2, 3)}
    variants = [
        *((name, f"{name} order={k}", dict(order=k)) for name in orders for k in orders[name]),
        *((name, name, {}) for name in ("EulerMaruyama", "Heun")),
    ]
    return [
        Case(
            label,
            Setting(process, Quadratic, CLD_COUNTS[name], CLD_T_MIN),
            lambda n, name=name, settings=settings: METHODS[name](**settings),
        )
        for name, label, settings in variants
    ]


def error(method: Method, setting: Setting, steps: int) -> float:
    """Returns the larger error of mean and standard deviation, started at the exact marginal at t = 1.

    For CLD's flow it is the largest error of a state.
    """
    process, t_min = setting.process, setting.t_min
    start = spread(process)
    size = start.shape[1]
    draws = PARTS * size * steps if method.stochastic else 0
    start = jnp.concatenate([start, jnp.tile(start[:1], (draws, 1))])
    sampler = Sampler(method=method, steps=setting.grid(steps=steps), t_min=t_min)
    solve = jax.jit(lambda z_1: solve_to_data(sampler, process, exact_eps(process), z_1, UnitDraws(size)).z_0)
    end = solve(as_state(jnp.split(start, size, axis=1)))[:, 0]
    if size > 1 and not method.stochastic:
        return float(jnp.abs(end - flow_of_spread(process, t_min)).max())
    mean, cov = moments(process, jnp.asarray(t_min))
    deviation = float(jnp.linalg.norm(end[1:] - end[0]))
    return max(abs(float(end[0] - mean[0])), abs(deviation - float(cov[0, 0]) ** 0.5))


def spread(process: Process) -> Float[Array, "rows coordinates"]:
    """Returns the mean of the marginal at t = 1, and the mean plus each column of the Cholesky factor."""
    mean, cov = moments(process, jnp.ones(()))
    root = jnp.linalg.cholesky(cov)
    return mean + jnp.concatenate([jnp.zeros_like(root[:1]), root.T])


@functools.cache
def flow_of_spread(process: Process, t_min: float) -> np.ndarray:
    """Returns the probability flow from the rows of `spread`, which determine the affine flow from any state."""
    start = spread(process)
    return np.asarray(
        converged_flow(process, as_state(jnp.split(start, start.shape[1], axis=1)), t_min)[:, 0]
    )


def slope(build: Callable[[int], Method], setting: Setting) -> float:
    """Returns the order by a fit to the errors for the numbers of steps of the setting. Needs float64."""
    counts = setting.counts
    errors = [error(build(n), setting, n) for n in counts]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


COLUMNS = """
| solver | order | slope | evaluations per step | process and steps |
|---|---|---|---|---|
"""
HEAD = f"""# Orders of the solvers

Written by `python -m experiments.solver_orders`. Every solver samples Gaussian data with the exact noise prediction,
from the exact marginal at $t=1$ to $t_{{\\min}}={T_MIN}$ of a variance-preserving process. The slope is that of the
larger error, of mean or standard deviation, against the number of steps; both are computed, not sampled. For solvers
with an option `order`, the column `order` is the expected slope; UniPC's corrector adds one. `lower_order_final` and
the published 3M limit it to 2. The last table is for CLD,
where solvers of the probability flow are measured by states instead.
{COLUMNS}"""
START = f"""
The first steps of multistep methods have lower order. The error of the first step, by Euler, falls with the square of
the number of steps, but is small: it shows if there is some signal at $t=1$ and the steps are many. UniPC corrects it.
{COLUMNS}"""
OF_CLD = f"""
CLD on the same data, from its exact marginal at $t=1$ to $t_{{\\min}}={CLD_T_MIN:g}$. SSCS and EulerMaruyama solve the
reverse SDE. Their slope is the weak order: of the larger error of mean or standard deviation of the position. GDDIM and
Heun solve the probability flow. Their slope is that of the largest error of a position, against Dopri8 with a tolerance
of 1e-10, over three initial states that determine the affine map. Errors of the map partly cancel in its moments.
{COLUMNS}"""


def row(case: Case) -> str:
    """Returns a row of the table."""
    method = case.build(case.setting.counts[0])
    per_step, first, extra = method.cost
    evaluations = f"{per_step}" + (f" + {first + extra} once" if first + extra else "")
    measured = slope(case.build, case.setting)
    return f"| {case.label} | {method.order} | {measured:.2f} | {evaluations} | {case.setting.label()} |\n"


def main() -> None:
    """Writes the tables."""
    jax.config.update("jax_enable_x64", True)
    signal = Setting(GENTLE, Quadratic, (160, 320, 640))
    highest = [
        case._replace(setting=signal)
        for case in cases()
        if case.build(1).order > 2 and case.label.split()[0] in MULTISTEP
    ]
    tables = ((HEAD, cases()), (START, highest), (OF_CLD, cld_cases(CLD())))
    with tqdm(total=sum(len(rows) for _, rows in tables), desc="orders", unit="row") as bar:
        page = ""
        for head, rows in tables:
            page += head
            for case in rows:
                page += row(case)
                bar.update()
    pathlib.Path("docs/solver_orders.md").write_text(page)


if __name__ == "__main__":
    main()
