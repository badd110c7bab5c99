"""Shared by the ablations: runs that differ in a few fields of one config, trained once, evaluated once, compared.

The folder of a trial is the folder of a run: a trial resumes and is never repeated, and experiments with one output
folder share their trials. Several processes may share it if they take different seeds; the last to finish reads the
results of all.
"""

import argparse
import contextlib
import csv
import dataclasses
import math
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from lsgm_jax.config.load import load_config
from lsgm_jax.config.registry import Config
from lsgm_jax.errors import TrainingError
from lsgm_jax.evaluation.likelihood import evaluate
from lsgm_jax.evaluation.report import add_to_report, read_report
from lsgm_jax.evaluation.sample_quality import choose_extractor, compare_with_data
from lsgm_jax.files import replacing
from lsgm_jax.sampling.run import Run
from lsgm_jax.training.train import train

ROOT = pathlib.Path(__file__).parent.parent
Setup = tuple[str, Mapping[str, Any]]  # a config file and the fields to change
# Smaller than the demos, because an ablation trains many runs.
SIZES: dict[str, Setup] = {
    "quick": (
        "digits.py:quick",
        {"autoencoder.channels": (8, 8), "score.channels": (8,), "eval.draws": 2, "eval.samples": 64},
    ),
    "cpu": (
        "digits.py",
        {
            "autoencoder.channels": (16, 32),
            "score.channels": (32,),
            "train.vae_steps": 800,
            "train.steps": 800,
            "train.eval_every": 200,
            "joint_kl.steps": 400,
            "eval.draws": 8,
            "eval.samples": 500,
        },
    ),
    "gpu": (
        "lsgm_cifar10.py:fid",
        {
            "autoencoder.groups_per_scale": 4,
            "autoencoder.encoder_channels": 64,
            "autoencoder.decoder_channels": 64,
            "score.channels": 128,
            "score.blocks": 2,
            "train.vae_steps": 40_000,
            "train.steps": 60_000,
            "eval.samples": 10_000,
        },
    ),
}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting: its name and its config fields."""

    name: str
    fields: Mapping[str, Any]


def command_line(description: str | None, name: str) -> argparse.Namespace:
    """Parses the options of an ablation: output folder, size and seeds; `name` is the stem of its files."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/trials"))
    parser.add_argument("--size", choices=tuple(SIZES), default="cpu")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    options = parser.parse_args()
    options.name = name
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    return options


def run_all(
    trials: Sequence[Trial], options: argparse.Namespace, metrics: Sequence[str], setup: Setup | None = None
) -> list[Row]:
    """Trains and evaluates every trial with every seed; NAME.csv grows with each.

    Args:
        trials: the settings.
        options: of `command_line`.
        metrics: "fid", or metrics of `likelihood.evaluate`.
        setup: setup of all trials; None for that of the size.
    """
    rows = []
    jobs = [(trial, seed) for seed in options.seeds for trial in trials]
    for trial, seed in tqdm(jobs, desc="runs"):
        report = run_trial(trial, setup or SIZES[options.size], seed, options.out, metrics)
        rows.append(_row(trial, seed, report))
        write_table(file_of(options, "csv"), rows)
    return rows


def file_of(options: argparse.Namespace, kind: str) -> pathlib.Path:
    """Returns the path of a table or figure of an experiment."""
    return options.out / f"{options.name}.{kind}"


def run_trial(
    trial: Trial, setup: Setup, seed: int, out: pathlib.Path, metrics: Sequence[str]
) -> Mapping[str, Any]:
    """Trains and evaluates one trial and returns its report, where "diverged" is the error that ended training, or "".

    Trials of one seed start from the same VAE, that of the first trial.
    """
    workdir, vae = out / f"seed{seed}" / trial.name, out / f"seed{seed}" / "vae"
    config = load(setup, {**trial.fields, "seed": seed})
    if (report := read_report(workdir)).get("diverged"):
        return report
    made = workdir / "checkpoints" / "vae"
    if config.model == "lsgm":
        _copy_once(vae, made)
    begin = time.monotonic()
    try:
        train(config, workdir)
    except TrainingError as error:
        return add_to_report(workdir, diverged=str(error))
    finally:
        _copy_once(made, vae)
    if "train_seconds" not in read_report(workdir):
        add_to_report(workdir, train_seconds=time.monotonic() - begin, diverged="")
    evaluation = [f"--config.{key}={value}" for key, value in setup[1].items() if key.startswith("eval.")]
    run = Run.open(workdir, evaluation)
    for metric in metrics:
        add_to_report(workdir, **_evaluate_metric(run, metric, seed))  # cached results are free
    return read_report(workdir)


def _copy_once(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a folder atomically, if it exists and the copy does not."""
    if not source.is_dir() or target.is_dir():
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, partial)
    partial.rename(target)


def _evaluate_metric(run: Run, metric: str, seed: int) -> dict[str, Any]:
    if metric == "fid":
        return compare_with_data(run, ["fid"], choose_extractor(run, inception=None), seed=seed)
    return evaluate(run, [metric], seed=seed)


def load(setup: Setup, fields: Mapping[str, Any]) -> Config:
    """Loads the config of a setup with further fields."""
    file, common = setup
    overrides = [f"--config.{key}={value}" for key, value in {**common, **fields}.items()]
    return load_config(str(ROOT / "configs" / file), overrides)


def _row(trial: Trial, seed: int, report: Mapping[str, Any]) -> Row:
    def first(*keys: str) -> float:
        return next((report[key] for key in keys if key in report), math.nan)

    return {
        "trial": trial.name,
        "seed": seed,
        "nelbo": first("nelbo_lsgm", "nelbo_sgm"),
        "nelbo_vae": first("nelbo_vae"),
        "fid": first("fid_lsgm", "fid_sgm"),
        "fid_vae": first("fid_vae"),
        "nfe": first("samples_nfe"),
        "train_seconds": first("train_seconds"),
        "diverged": report["diverged"],
    }


def column(rows: Sequence[Row], trial: str, key: str) -> list[float]:
    """Returns one value per seed."""
    return [row[key] for row in rows if row["trial"] == trial]


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Computes mean and standard error over the seeds with a finite value."""
    finite = np.asarray([value for value in values if np.isfinite(value)], np.float64)
    if not len(finite):
        return math.nan, math.nan
    stderr = finite.std(ddof=1) / math.sqrt(len(finite)) if len(finite) > 1 else math.nan
    return float(finite.mean()), float(stderr)


def thousandths(values: Sequence[float]) -> str:
    """Formats mean and standard error over the seeds in thousandths; "" if there is no finite value."""
    mean, error = over_seeds([1e3 * value for value in values])
    return (
        f"{mean:.1f} ± {error:.1f}" if math.isfinite(error) else f"{mean:.1f}" if math.isfinite(mean) else ""
    )


def paired(rows: Sequence[Row], left: str, right: str, key: str) -> str:
    """Formats left minus right, paired by seed: mean, standard error and signs."""
    return difference(column(rows, left, key), column(rows, right, key))


def difference(left: Sequence[float], right: Sequence[float], unit: float = 1.0) -> str:
    """Formats left minus right as `paired` does, from one value per seed each, multiplied by `unit`."""
    less = unit * (np.asarray(left) - np.asarray(right))
    mean, error = over_seeds(less.tolist())
    signs = "".join("+" if value > 0 else "-" if value < 0 else "?" for value in less)
    return f"{mean:+.2f} ± {error:.2f} ({signs})"


def summary(rows: Sequence[Row], keys: Mapping[str, str]) -> str:
    """Formats a table in Markdown, one line per trial: means and standard errors over the seeds.

    Args:
        rows: rows of all trials and seeds.
        keys: columns of the rows and their headings.
    """
    lines = ["| trial | " + " | ".join(keys.values()) + " |", "|---" * (len(keys) + 1) + "|"]
    for trial in dict.fromkeys(row["trial"] for row in rows):
        cells = []
        for key in keys:
            values = column(rows, trial, key)
            mean, error = over_seeds(values)
            lost = sum(not math.isfinite(value) for value in values)
            cells.append(f"{mean:.2f} ± {error:.2f}" + (f", {lost} of {len(values)} lost" if lost else ""))
        lines.append(f"| {trial} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def conclude(options: argparse.Namespace, table: str, lines: Sequence[str]) -> None:
    """Writes the table and the conclusions to NAME.md and prints them."""
    page = table + "\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"
    with replacing(file_of(options, "md")) as partial:
        partial.write_text(page)
    print(page)


def write_table(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes rows with the same columns as CSV, atomically."""
    with replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: pathlib.Path) -> list[Row]:
    """Reads a table of `write_table`, with numbers converted; [] if the file is missing."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: _value(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def _value(cell: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return cell


@contextlib.contextmanager
def figure(path: pathlib.Path, columns: int = 1, width: float = 5.0, height: float = 3.6) -> Iterator[Any]:
    """Yields a row of axes and saves the figure afterwards."""
    drawing, axes = plt.subplots(1, columns, figsize=(width * columns, height))
    yield np.atleast_1d(axes)
    drawing.tight_layout()
    with replacing(path) as partial:
        drawing.savefig(partial, dpi=120, format="png")
    plt.close(drawing)


def draw_by_trial(rows: Sequence[Row], keys: Mapping[str, str], path: pathlib.Path) -> None:
    """Draws one panel per column of the rows: a point for every trial, with one colour per seed."""
    names, seeds = (list(dict.fromkeys(row[key] for row in rows)) for key in ("trial", "seed"))
    with figure(path, columns=len(keys), width=max(4.0, 0.35 * len(names) + 2.0), height=4.5) as axes:
        for axis, (key, heading) in zip(axes, keys.items(), strict=True):
            for seed in seeds:
                points = [(names.index(row["trial"]), row[key]) for row in rows if row["seed"] == seed]
                axis.plot(*zip(*points, strict=True), "o", alpha=0.7, label=f"seed {seed}")
            axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
            axis.set_ylabel(heading)
        axes[0].legend(fontsize=8)
