"""The rows of a solver study: study.csv, and the table and the plot of them."""

import csv
import io
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from lsgm_jax.errors import first_line
from lsgm_jax.files import replacing, set_aside
from lsgm_jax.sealed import DamagedError, read_sealed, write_sealed
from lsgm_jax.training.logs import warn


class Row(NamedTuple):
    """One solver with one setting; None where a column does not apply."""

    solver: str
    setting: str  # number and kind of steps, or the tolerance
    nfe: int  # evaluations of the network on the batch
    nfe_mean: float  # mean over samples of the NFE that each alone would have needed
    seconds_per_sample: float  # with everything compiled, decoder included
    # Distance to the reference's latents; None for stochastic solvers, and if samples failed.
    rms_latent: float | None
    rms_sample: float | None  # the same of the decoded samples
    # To the test split; None if the data are not at hand, and if samples failed.
    energy_distance: float | None
    failed: int  # samples that ran out of steps, or are not finite


def read_rows(path: pathlib.Path) -> list[Row]:
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


def write_rows(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes study.csv in one step, with a checksum."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(Row._fields)
    writer.writerows(rows)
    write_sealed(path, text.getvalue().encode())


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
