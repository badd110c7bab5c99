"""The file report.json with the results of a run, which each command extends, and tables of its entries."""

import pathlib
from collections.abc import Callable
from typing import Any

from lsgm_jax.data.survey import DATA
from lsgm_jax.files import set_aside
from lsgm_jax.locks import alone
from lsgm_jax.sealed import DamagedError, read_json, write_json
from lsgm_jax.training.logs import warn

REPORT = "report.json"

# Suffix of a model in the names of report.json, and its column heading.
COLUMNS = {
    "lsgm": "LSGM",
    "sgm": "SGM",
    "ldm": "LDM",
    "vae": "VAE, Gaussian prior",
    "first_stage": "reconstructions",
}
# Prefix of a metric in the names of report.json, its row heading, and the format of its values.
DISTANCE_ROWS = (
    ("fid", "FID", ".3f"),
    ("kid", "KID", ".5f"),
    ("precision", "precision", ".4f"),
    ("recall", "recall", ".4f"),
)


def read_report(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads report.json; returns {} if it is missing. NaN, which older versions wrote, is None.

    A damaged file is renamed, with a warning.
    """
    path = workdir / REPORT
    try:
        return read_json(path, constant=lambda name: None)
    except FileNotFoundError:
        return {}
    except DamagedError as error:
        warn(f"{error}: renamed to {set_aside(path).name}, and a new report begins")
        return {}


def add_to_report(workdir: pathlib.Path, **entries: Any) -> dict[str, Any]:
    """Merges `entries` into report.json and returns the whole report; only the first process writes."""
    # The splits, classes and skipped files that the results are of.
    origin = {"data": DATA} if (workdir / DATA).exists() else {}
    return _change(workdir, lambda report: report | entries | origin)


def add_likelihoods(workdir: pathlib.Path, split: str, entries: dict[str, Any]) -> None:
    """Merges likelihoods into report.json: of the test split at the top level, of another split under its name."""
    if split == "test":
        add_to_report(workdir, **entries)
    else:
        _change(workdir, lambda report: report | {split: report.get(split, {}) | entries})


def add_distances(workdir: pathlib.Path, entries: dict[str, Any]) -> None:
    """Stores distances in report.json under "distances" and the name of their features.

    They replace all older entries of these features, so values that stand together belong to one evaluation.
    """
    features = {entries["features"]: entries}
    _change(workdir, lambda report: report | {"distances": report.get("distances", {}) | features})


def _change(workdir: pathlib.Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Replaces report.json by what `change` makes of it, while no other command does the same."""
    with alone(workdir):
        report = change(read_report(workdir))
        write_json(workdir / REPORT, report)
    return report


def likelihood_table(entries: dict[str, Any], split: str = "test") -> str:
    """Formats the entries of `likelihood.evaluate` as the table that `lsgm evaluate` prints."""

    def cell(name: str) -> str:
        mean, stderr = entries[name], entries[f"{name}_stderr"]
        if mean is None:
            return "not finite"
        return _number(mean) + ("" if stderr is None else f" ± {_number(stderr)}")

    lines: list[str] = []
    columns = [name for name in COLUMNS if f"nelbo_{name}" in entries]
    lines.append(f"{split} split, {entries[f'{split}_images']} samples, mean ± standard error over samples")
    for unit, ending in (("nats per sample", ""), ("bits per dimension", "_bpd")):
        if f"nelbo_{columns[0]}{ending}" not in entries:
            continue  # continuous data have no bits per dimension
        if ending and "sgm" in columns:
            lines.append("grey levels are dequantised uniformly")
        rows = [[unit, *(COLUMNS[name] for name in columns)]]
        for row in ("nelbo", "reconstruction", "entropy", "cross_entropy"):
            if all(entries[f"{row}_{name}{ending}"] == 0.0 for name in columns):
                continue  # data without an autoencoder have no such term
            rows.append([f"  {row}", *(cell(f"{row}_{name}{ending}") for name in columns)])
        lines += _aligned(rows)
    if "improvement" in entries:
        lines.append(f"LSGM below VAE by {cell('improvement')} nats, paired over samples")
    vae = f", VAE {entries['chosen_step_vae']}" if "chosen_step_vae" in entries else ""
    lines.append(f"steps chosen by validation: {entries['chosen_step']}{vae}")
    if "nelbo_ode_nfe" in entries:
        ode = cell(f"nelbo_{columns[0]}_ode")
        cost = f"NFE {entries['nelbo_ode_nfe']}, products with the Jacobian {entries['nelbo_ode_products']}"
        lines.append(f"NELBO by the ODE {ode} nats, {cost}")
    if "nelbo_iw_draws" in entries:
        weighted = cell(f"nelbo_{columns[0]}_iw")
        lines.append(f"importance-weighted bound of {entries['nelbo_iw_draws']} latents {weighted} nats")
    return "\n".join(lines)


def distance_table(entries: dict[str, Any]) -> str:
    """Formats the entries of `sample_quality.compare_with_data` as the table that `lsgm evaluate` prints."""
    columns = [name for name in COLUMNS if any(f"{row}_{name}" in entries for row, _, _ in DISTANCE_ROWS)]
    lines = [
        f"{entries['samples']} samples of step {entries['samples_step']} by {entries['samples_solver']}, "
        f"NFE {entries['samples_nfe']:.1f}, against "
        f"{entries['reference_images']} images of the {entries['reference']} split",
        f"by {entries['features']}",
    ]
    rows = [["", *(COLUMNS[name] for name in columns)]]
    for row, title, form in DISTANCE_ROWS:
        if f"{row}_{columns[0]}" in entries:
            cells = (
                _with_spread(entries[f"{row}_{name}"], entries.get(f"{row}_{name}_std"), form)
                for name in columns
            )
            rows.append([f"  {title}", *cells])
    lines += _aligned(rows)
    if f"kid_{columns[0]}" in entries:
        whole = entries[f"kid_{columns[0]}_std"] is None
        lines.append(
            f"KID: of {entries['kid_subset']}, all of the smaller set: its deviation is not known"
            if whole
            else f"KID: mean ± standard deviation over {entries['kid_subsets']} subsets of {entries['kid_subset']}"
        )
    if "psnr_first_stage" in entries:
        lines.append(f"reconstructions: {entries['psnr_first_stage']:.2f} dB, mean over images")
    if "class_accuracy" in entries:
        share = 100.0 * entries["class_accuracy"]
        lines.append(f"class accuracy {share:.1f} %: samples classified as the class they are conditioned on")
    if "pr_images" in entries:
        lines.append(f"precision and recall: {entries['pr_images']} of each, k = 3")
    return "\n".join(lines)


def _with_spread(value: float, spread: float | None, form: str) -> str:
    """Formats a value, and its spread if that is known."""
    return f"{value:{form}}" + ("" if spread is None else f" ± {spread:{form.removeprefix('9')}}")


def _number(value: float) -> str:
    """Formats a number with four decimals, and in powers of ten where its digits would be meaningless."""
    return f"{value:.4f}" if abs(value) < 1e7 else f"{value:.4e}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Returns the lines of a table: headings to the left, numbers to the right, two spaces at least between."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        f"{heading:{max(first, 20)}s}"
        + "".join(f"  {cell:>{max(width, 18)}s}" for cell, width in zip(cells, others, strict=True))
        for heading, *cells in rows
    ]


def time_line(entries: dict[str, Any]) -> str:
    """Formats the entries of `sample_quality.time_sampling` as the line that `lsgm evaluate` prints."""
    return (
        f"{entries['time_images']} samples by {entries['time_solver']}: {entries['time_seconds']:.3f} s, "
        f"NFE {entries['time_nfe']:g}, on one {entries['time_device']}, median of 3"
    )
