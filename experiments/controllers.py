"""Error against NFE by the solver, the first step and the coefficients of the step size controller.

python -m experiments.controllers --out=runs/controllers --workdirs=runs/digits,runs/digits_cld

On the mixture in the plane with its exact score (samples by VP and CLD, and log-likelihoods), and on trained runs,
every controller integrates the same problem at seven tolerances, in float64. Errors are against Dopri8 at a tolerance
of 1e-9. Writes controllers.csv, and controllers.md: the NFE of every controller over that of the first at equal errors,
and the NFE and errors of some.
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from experiments.exact_score import exact_eps
from experiments.trials import Row, write_table
from lsgm_jax.arrays import EpsNet, State
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.linear import Process, sample_prior
from lsgm_jax.processes.vp import VP
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.integrate import Adaptive, Norm
from lsgm_jax.solvers.likelihood import Divergence, log_density
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, solve_to_data
from lsgm_jax.solvers.terms import KeyedNoise

T_MIN, SEED = 1e-3, 0
TOLERANCES = tuple(10.0 ** (-0.5 * half) for half in range(4, 11))  # 1e-2 to 1e-5
SHOWN = TOLERANCES[::2]
SHOWN_CONTROLLERS = ("Tsit5, I, first step 1e-3", "Tsit5, PI 0.2, 0.4", "Dopri5, PI 0.2, 0.4")


@dataclasses.dataclass(frozen=True)
class Controller:
    """A solver, coefficients of diffrax's `PIDController`, and the first step."""

    pcoeff: float = 0.0
    icoeff: float = 1.0
    safety: float = 0.9
    factormax: float = 10.0
    first_step: float | None = None
    solver: str = "Tsit5"


CONTROLLERS = {
    "Tsit5, I, first step 1e-3": Controller(first_step=1e-3),
    "Tsit5, I, first step 1e-2": Controller(first_step=1e-2),
    "Tsit5, I": Controller(),
    "Tsit5, I, safety 0.8": Controller(safety=0.8),
    "Tsit5, I, factor at most 5": Controller(factormax=5.0),
    "Tsit5, I 0.7": Controller(icoeff=0.7),
    "Tsit5, PI 0.1, 0.9": Controller(0.1, 0.9),
    "Tsit5, PI 0.2, 0.4": Controller(0.2, 0.4),
    "Tsit5, PI 0.3, 0.4": Controller(0.3, 0.4),
    "Tsit5, PI 0.4, 0.3": Controller(0.4, 0.3),
    "Dopri5, I": Controller(solver="Dopri5"),
    "Dopri5, I 0.7": Controller(icoeff=0.7, solver="Dopri5"),
    "Dopri5, PI 0.2, 0.4": Controller(0.2, 0.4, solver="Dopri5"),
    "Dopri5, PI 0.3, 0.4": Controller(0.3, 0.4, solver="Dopri5"),
    "Bosh3, PI 0.2, 0.4": Controller(0.2, 0.4, solver="Bosh3"),
    "Dopri8, PI 0.2, 0.4": Controller(0.2, 0.4, solver="Dopri8"),
}
BASE = next(iter(CONTROLLERS))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Traced(Adaptive):
    """Adaptive steps whose tolerance and coefficients are arguments of a compiled solve, not constants in it."""

    numbers: Float[Array, "5"]  # tolerance, and the coefficients of a `Controller`

    def controller(self, norm: Norm) -> diffrax.PIDController:
        """Returns the controller with these numbers."""
        tolerance, pcoeff, icoeff, safety, factormax = self.numbers
        return diffrax.PIDController(
            rtol=tolerance,
            atol=tolerance,
            norm=norm,
            pcoeff=pcoeff,
            icoeff=icoeff,
            safety=safety,
            factormax=factormax,
        )


# Integrates a problem by a sampler: values [batch, ...], NFE of the batch, and the mean NFE of a sample.
Problem = Callable[[Sampler], tuple[Array, Array, Array]]


def samples(process: Process, eps_net: EpsNet, z_1: State) -> Problem:
    """Returns the problem of sampling from given noise."""

    def solve(sampler: Sampler) -> tuple[Array, Array, Array]:
        noise = KeyedNoise(jax.random.key(SEED))  # ODE solvers draw none
        # Behind a barrier, or XLA would evaluate the network at the constant noise while it compiles.
        solution = solve_to_data(sampler, process, eps_net, jax.lax.optimization_barrier(z_1), noise)
        return solution.z_0, solution.nfe, solution.nfe_mean

    return solve


def likelihoods(process: Process, count: int) -> Problem:
    """Returns the problem of log p of the mixture's samples, with the exact divergence."""
    z_0 = samples(process, exact_eps(process), sample_prior(process, jax.random.key(SEED), (count, 2)))
    points, _, _ = jax.jit(lambda: z_0(Sampler(steps=Adaptive(), t_min=T_MIN)))()

    def solve(sampler: Sampler) -> tuple[Array, Array, Array]:
        x, key = jax.lax.optimization_barrier(points), jax.random.key(SEED)
        density = log_density(sampler, process, exact_eps(process), key, x, Divergence(name="exact"))
        return density.log_prob, density.nfe, density.nfe

    return solve


def trained(workdir: str, count: int) -> Problem:
    """Returns the problem of sampling the latents of a run, whose network computes in float64."""
    run = Run.open(workdir)
    to_float64 = lambda leaf: leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    params = jax.tree.map(to_float64, run.best()[0])
    process = run.model.process(params)
    z_1 = sample_prior(process, jax.random.key(SEED), (count, *run.model.latent_shape))
    return samples(process, run.model.prior.sampling_net(params, None, z_1, 1.0), z_1)


def problems(workdirs: Sequence[str], points: int, images: int) -> dict[str, Problem]:
    """Returns the problems by name: `points` samples in the plane, `images` of every run."""
    made: dict[str, Problem] = {}
    for name, process in (("VP", VP()), ("CLD", CLD())):
        z_1 = sample_prior(process, jax.random.key(SEED), (points, 2))
        made[f"mixture, {name}"] = samples(process, exact_eps(process), z_1)
    made["mixture, VP, log p"] = likelihoods(VP(), points)
    return made | {pathlib.Path(path).name: trained(path, images) for path in workdirs}


def compiled(problem: Problem, method: str, first_step: float | None, per: str) -> Callable[..., Any]:
    """Returns a compiled function from the numbers of `Traced` to what the problem returns."""

    def solve(numbers: Float[Array, "5"]) -> tuple[Array, Array, Array]:
        steps = Traced(per=per, first_step=first_step, numbers=numbers)
        return problem(Sampler(method=METHODS[method](), steps=steps, t_min=T_MIN))

    return jax.jit(solve)


def measure(name: str, problem: Problem, pers: Sequence[str]) -> list[Row]:
    """Measures every controller, tolerance and `per` on one problem and returns the rows."""
    numbers = lambda tolerance, tried: jnp.array(
        [tolerance, tried.pcoeff, tried.icoeff, tried.safety, tried.factormax]
    )
    exact, _, _ = compiled(problem, "Dopri8", None, "sample")(numbers(1e-9, Controller()))
    rows = []
    for per in pers:
        solver = functools.cache(functools.partial(compiled, problem, per=per))
        for label, tried in CONTROLLERS.items():
            for tolerance in TOLERANCES:
                values, nfe, mean = solver(tried.solver, tried.first_step)(numbers(tolerance, tried))
                error = float(jnp.sqrt(jnp.mean((values - exact) ** 2)))
                row = {"problem": name, "per": per, "controller": label}
                rows.append(
                    row | {"tolerance": tolerance, "nfe": int(nfe), "mean": float(mean), "error": error}
                )
    return rows


def relative_nfe(rows: Sequence[Row], base: Sequence[Row]) -> float:
    """Returns the NFE of one controller over that of another at equal errors, geometric mean over its errors.

    NFE falls in whole steps and errors scatter, so both are smoothed: log NFE is fitted linearly in log error.
    """
    logs = lambda table: np.log([[row["error"], row["nfe"]] for row in table]).T
    (errors, own), other = logs(rows), logs(base)
    slope, height = np.polyfit(*other, 1)
    return float(np.exp(np.mean(own - slope * errors - height)))


def chosen(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Returns the rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def comparison(rows: Sequence[Row]) -> str:
    """Formats NFE over that of `BASE` at equal errors, one line per controller, one column per problem."""
    cases = list(dict.fromkeys((row["problem"], row["per"]) for row in rows))
    lines = ["| controller | " + " | ".join(f"{problem}, per {per}" for problem, per in cases) + " | mean |"]
    lines.append("|---" * (len(cases) + 2) + "|")
    for label in CONTROLLERS:
        ratios = []
        for problem, per in cases:
            case = chosen(rows, problem=problem, per=per)
            ratios.append(relative_nfe(chosen(case, controller=label), chosen(case, controller=BASE)))
        mean = np.exp(np.mean(np.log(ratios)))
        lines.append(f"| {label} | " + " | ".join(f"{ratio:.2f}" for ratio in [*ratios, mean]) + " |")
    return "\n".join(lines)


def details(rows: Sequence[Row]) -> str:
    """Formats NFE and error of `SHOWN_CONTROLLERS` at the tolerances `SHOWN`."""
    lines = ["| problem | controller | " + " | ".join(f"{tolerance:g}" for tolerance in SHOWN) + " |"]
    lines.append("|---" * (len(SHOWN) + 2) + "|")
    for problem, per in dict.fromkeys((row["problem"], row["per"]) for row in rows):
        for label in SHOWN_CONTROLLERS:
            case = chosen(rows, problem=problem, per=per, controller=label)
            cells = (f"{row['nfe']}, {row['error']:.1e}" for row in case if row["tolerance"] in SHOWN)
            lines.append(f"| {problem}, per {per} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures all problems and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/controllers"))
    parser.add_argument("--workdirs", default="", help="runs without conditions, comma-separated")
    parser.add_argument("--per", default="sample,batch", help="comma-separated")
    parser.add_argument("--quick", action="store_true", help="few samples, for a look")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    options.out.mkdir(parents=True, exist_ok=True)
    workdirs = [path for path in options.workdirs.split(",") if path]
    rows: list[Row] = []
    made = problems(workdirs, *((8, 2) if options.quick else (64, 16)))
    for name, problem in tqdm(made.items(), desc="problems"):
        rows += measure(name, problem, options.per.split(","))
        write_table(options.out / "controllers.csv", rows)
    page = f"{comparison(rows)}\n\n{details(rows)}\n"
    (options.out / "controllers.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
