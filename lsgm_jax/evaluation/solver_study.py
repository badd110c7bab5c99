"""Compares solvers on one trained model from the same noise: NFE, time, and distance to the converged samples."""

import csv
import dataclasses
import io
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from lsgm_jax.arrays import Condition, Key, Params, State
from lsgm_jax.data.pipeline import whole_split
from lsgm_jax.errors import ConfigError, DataError, first_line
from lsgm_jax.evaluation.cache import Cache, digest
from lsgm_jax.evaluation.fid import energy_distance
from lsgm_jax.files import replacing, set_aside
from lsgm_jax.sampling.run import Run
from lsgm_jax.sealed import DamagedError, read_sealed, write_sealed
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.sampler import Sampler, Solution, draw_noise
from lsgm_jax.training.logs import warn

REFERENCE = ("Dopri8", 1e-6)  # solver and tolerance that stand in for the exact flow

Given = tuple[State, Condition]  # noise, and the conditions of its samples


class Row(NamedTuple):
    """One solver with one setting; None where a column does not apply."""

    solver: str
    setting: str  # number and kind of steps, or the tolerance
    nfe: int  # evaluations of the network on the batch
    nfe_mean: float  # mean over samples of the NFE that each alone would have needed
    seconds_per_sample: float  # with everything compiled, decoder included
    rms_latent: (
        float | None
    )  # distance to the reference's latents; None for stochastic solvers, and if samples failed
    rms_sample: float | None  # the same of the decoded samples
    energy_distance: (
        float | None
    )  # to the test split; None if the data are not at hand, and if samples failed
    failed: int  # samples that ran out of steps, or are not finite


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
    rows = {(row.solver, row.setting): row for row in _read(folder / "study.csv")}
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
        _write(folder / "study.csv", list(rows.values()))
    return [rows[setting.solver, setting.name] for setting in settings]


def as_markdown(rows: Sequence[Row]) -> str:
    """Returns the table in Markdown."""
    lines = [
        "| solver | setting | NFE | per sample | ms per sample | RMS, latent | RMS, samples | energy distance |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row.solver,
            row.setting + (f" ({row.failed} failed)" if row.failed else ""),
            str(row.nfe),
            f"{row.nfe_mean:.1f}",
            f"{1e3 * row.seconds_per_sample:.2f}",
            *("" if value is None else f"{value:.4f}" for value in row[5:8]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Plots the distance to the reference, and to the data, against NFE; one line per solver."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [
        ("rms_latent", "RMS distance to the converged latents"),
        ("energy_distance", "energy distance to the test split"),
    ]
    panels = [(field, title) for field, title in panels if any(getattr(row, field) for row in rows)]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.5 * len(panels), 4.5), layout="constrained", squeeze=False
    )
    for axis, (field, title) in zip(axes[0], panels, strict=True):
        for index, solver in enumerate(dict.fromkeys(row.solver for row in rows)):
            for adaptive, style in ((False, "o-"), (True, "s--")):
                points = sorted(
                    (row.nfe, getattr(row, field))
                    for row in rows
                    if row.solver == solver
                    and row.setting.startswith("tolerance") == adaptive
                    and getattr(row, field) is not None
                )
                if points:
                    label = f"{solver}, adaptive" if adaptive else solver
                    colour = plt.get_cmap("tab20")(index % 20)
                    axis.plot(*zip(*points, strict=True), style, label=label, color=colour, markersize=4)
        axis.set_xscale("log")
        axis.set_yscale("log" if field == "rms_latent" else "symlog", **_linear_part(field))
        axis.set_xlabel("network evaluations (NFE)")
        axis.set_title(title, fontsize=11)
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
    plt.close(figure)


def _linear_part(field: str) -> dict[str, float]:
    """Unbiased distances may be negative: their axis is linear around zero."""
    return {} if field == "rms_latent" else {"linthresh": 0.02}


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


def _read(path: pathlib.Path) -> list[Row]:
    """Returns the rows of study.csv. A damaged file is renamed, with a warning, and measured again."""
    try:
        return [_row(cells) for cells in csv.DictReader(read_sealed(path).decode().splitlines())]
    except FileNotFoundError:
        return []
    except (DamagedError, ValueError, TypeError, KeyError) as error:
        named = error if isinstance(error, DamagedError) else f"{path} is damaged ({first_line(error)})"
        warn(f"{named}: renamed to {set_aside(path).name}, and its rows are measured again")
        return []


def _row(cells: dict[str, str]) -> Row:
    values = {name: cells[name] for name in ("solver", "setting")}
    numbers = {
        name: None if cells[name] == "" else float(cells[name]) for name in Row._fields if name not in values
    }
    counts = {name: int(numbers[name] or 0) for name in ("nfe", "failed")}
    return Row(**{**values, **numbers, **counts})  # pyright: ignore[reportArgumentType]


def _write(path: pathlib.Path, rows: Sequence[Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(Row._fields)
    writer.writerows(rows)
    write_sealed(path, text.getvalue().encode())
