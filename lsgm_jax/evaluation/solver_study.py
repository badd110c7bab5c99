"""Compares solvers on one trained model from the same noise: NFE, time, and distance to the converged samples."""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from lsgm_jax.arrays import Condition, Key, Params, State
from lsgm_jax.data.pipeline import whole_split
from lsgm_jax.errors import ConfigError, DataError
from lsgm_jax.evaluation.cache import Cache, digest
from lsgm_jax.evaluation.fid import energy_distance
from lsgm_jax.evaluation.study_rows import Row, read_rows, write_rows
from lsgm_jax.sampling.run import Run
from lsgm_jax.sealed import write_sealed
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.sampler import Sampler, Solution, draw_noise

REFERENCE = ("Dopri8", 1e-6)  # solver and tolerance that stand in for the exact flow

Given = tuple[State, Condition]  # noise, and the conditions of its samples


@dataclasses.dataclass(frozen=True)
class Setting:
    """A solver with its steps, as overrides of a config."""

    solver: str
    name: str
    overrides: tuple[str, ...]


def make_settings(
    run: Run, solvers: Sequence[str], nfe: Sequence[int], rtol: Sequence[float], grid: str
) -> list[Setting]:
    """Returns every solver with every NFE budget that buys it a step, and every tolerance if it is adaptive.

    Args:
        solvers: names, or import paths of solvers of one's own.
        grid: of the fixed steps; "default" for each solver's own.

    Raises:
        ConfigError: for a solver that does not exist or cannot integrate the model's process.
    """
    extra = 0 if run.experiment.sampler.denoise == "none" else 1
    controller = run.config.steps.name if _adapts(run) else "adaptive"
    settings = []
    for solver in solvers:
        chosen = f"--config.solver.name={solver}"
        any_steps = ("--config.steps.name=default", "--config.steps.steps=1")
        method = run.overridden([chosen, *any_steps]).experiment.sampler.method
        cost = method.cost
        for budget in nfe:
            steps = (budget - extra - cost.first - cost.extra) // cost.per_step
            if steps > 0:
                own = method.grid if grid == "default" else grid
                name = f"{steps} {own} steps"
                overrides = (chosen, f"--config.steps.name={own}", f"--config.steps.steps={steps}")
                settings.append(Setting(solver, name, overrides))
        if method.adaptive:
            for tolerance in rtol:
                overrides = (chosen, *_adaptive(tolerance, controller))
                settings.append(Setting(solver, f"tolerance {tolerance:g}", overrides))
    if not settings:
        raise ConfigError(f"--nfe={','.join(map(str, nfe))} buys no step of {', '.join(solvers)}: give more")
    return list(dict.fromkeys(settings))  # two budgets may buy the same steps


def _adapts(run: Run) -> bool:
    return isinstance(run.experiment.sampler.steps, Adaptive)


def _controller(run: Run) -> str:
    """Describes how adaptive steps differ from the default ones; tolerances are those of each row."""
    plain = {"name": "adaptive", **dataclasses.asdict(Adaptive())}
    given = run.config.steps.items() if _adapts(run) else ()
    changed = sorted(
        (name, value) for name, value in given if name not in _OF_ROWS and value != plain.get(name)
    )
    return "".join(f", steps.{name} {value}" for name, value in changed)


_OF_ROWS = ("rtol", "atol", "max_steps")


def _adaptive(tolerance: float, controller: str = "adaptive") -> tuple[str, ...]:
    return (
        f"--config.steps.name={controller}",
        f"--config.steps.rtol={tolerance}",
        f"--config.steps.atol={tolerance}",
    )


def study(run: Run, settings: Sequence[Setting], count: int, seed: int, folder: pathlib.Path) -> list[Row]:
    """Measures every setting; those that `folder`/study.csv has already are skipped.

    Args:
        count: samples of each.
        seed: of the noise, which is the same for all.
        folder: gets study.csv, after every row.

    Raises:
        ConfigError: if the folder holds a study with another count, seed or sampler's ends, or of other parameters,
            or if the reference does not converge.
    """
    params, step = run.best()
    k_prior, key = jax.random.split(jax.random.key(seed))
    folder.mkdir(parents=True, exist_ok=True)
    ends = ", ".join(f"{name} {value}" for name, value in sorted(run.config.sampling.items()))
    parameters = f"parameters {digest(params)} of step {step}"
    of = f"{count} samples, seed {seed}, {parameters}, {ends}{_controller(run)}"
    _claim(folder, of)
    process, shape = run.model.process(params), (count, *run.model.latent_shape)
    z_1 = draw_noise(run.experiment.sampler, process, k_prior, shape)
    given = z_1, run.conditions.request(count)(np.arange(count))
    cache = Cache(folder / "reference.npz", {"study": of, "reference": REFERENCE})
    reference, test = _reference(run, params, given, key, cache), _test_split(run)
    rows = {(row.solver, row.setting): row for row in read_rows(folder / "study.csv")}
    for setting in tqdm(settings, desc="study", leave=False):
        if (setting.solver, setting.name) in rows:
            continue
        sampler = run.overridden(setting.overrides).experiment.sampler
        x, solution, seconds = _draw(run, params, given, key, sampler)
        failed = int((~solution.success).sum())
        follows = not sampler.method.stochastic and not failed
        rows[setting.solver, setting.name] = Row(
            solver=setting.solver,
            setting=setting.name,
            nfe=int(solution.nfe),
            nfe_mean=float(solution.nfe_mean),
            seconds_per_sample=seconds / count,
            rms_latent=_rms(solution.z_0, reference["z_0"]) if follows else None,
            rms_sample=_rms(x, reference["x"]) if follows else None,
            energy_distance=None if test is None or failed else energy_distance(x, test),
            failed=failed,
        )
        write_rows(folder / "study.csv", list(rows.values()))
    return [rows[setting.solver, setting.name] for setting in settings]


def _draw(
    run: Run, params: Params, given: Given, key: Key, sampler: Sampler
) -> tuple[np.ndarray, Solution, float]:
    """Samples, their solution, and the seconds of the second call."""

    def decode(params: Params, given: Given, key: Key) -> tuple[Array, Solution]:
        z_1, condition = given
        return run.model.decode(params, z_1, key, sampler, condition)

    compiled = jax.jit(decode).lower(params, given, key).compile()
    jax.block_until_ready(compiled(params, given, key))
    start = time.monotonic()
    x, solution = jax.block_until_ready(compiled(params, given, key))
    return np.asarray(x), solution, time.monotonic() - start


def _reference(run: Run, params: Params, given: Given, key: Key, cache: Cache) -> dict[str, np.ndarray]:
    """Latents and samples of the converged flow."""
    done, found = cache.read()
    if done:
        return found
    solver, tolerance = REFERENCE
    overrides = [f"--config.solver.name={solver}", *_adaptive(tolerance)]
    sampler = run.overridden([*overrides, "--config.sampling.denoise=none"]).experiment.sampler
    x, solution, _ = _draw(run, params, given, key, sampler)
    if not solution.success.all():
        raise ConfigError(
            f"the reference by {solver} at {tolerance:g} ran out of steps: raise --config.steps.max_steps"
        )
    found = {"z_0": np.asarray(solution.z_0), "x": x}
    cache.write(1, found)
    return found


def _test_split(run: Run) -> np.ndarray | None:
    try:
        test = whole_split(run.experiment.data, "test")
    except DataError:  # a converted run may be studied without its data
        return None
    return test if len(test) > 1 else None  # one image has no distance


def _claim(folder: pathlib.Path, what: str) -> None:
    """A study is resumed with the settings that it began with."""
    path = folder / "study.txt"
    if path.exists() and (before := path.read_text(errors="replace")) != what:
        raise ConfigError(f"{folder} holds a study of {before}, not of {what}: delete or rename it")
    write_sealed(path, what.encode())


def _rms(x: Any, y: np.ndarray) -> float:
    return float(jnp.sqrt(jnp.mean((jnp.asarray(x) - y) ** 2)))
