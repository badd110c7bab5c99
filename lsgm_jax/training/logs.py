"""Output of a training run: progress bar, warnings, metrics.csv and TensorBoard."""

import contextlib
import csv
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from lsgm_jax.files import is_first, replacing

# First columns of metrics.csv in every run, in this order; other metrics of a stage come after them.
COLUMNS: tuple[str, ...] = (
    "stage",
    "step",
    "split",
    "nelbo",
    "reconstruction",
    "entropy",
    "cross_entropy",
    "prior_loss",
    "vae_penalty",
    "prior_penalty",
    "loss",
    "gradient_norm",
    "skipped",
    "images_per_second",
)


class MetricsLog:
    """Writes metrics.csv, and TensorBoard scalars and images, of one stage.

    A resumed stage deletes the rows after its checkpoint, so that the file is that of an uninterrupted run. With
    several processes, the first one writes.

    Args:
        workdir: folder of the run.
        stage: name of the stage.
        resumed_step: step of the checkpoint that training resumes from, 0 if there is none.
    """

    def __init__(self, workdir: pathlib.Path, stage: str, resumed_step: int):
        self.stage = stage
        self.path = workdir / "metrics.csv"
        self._columns, rows = _read(self.path)
        _write(
            self.path,
            self._columns,
            [row for row in rows if row["stage"] != stage or int(row["step"]) <= resumed_step],
        )
        self._tensorboard = SummaryWriter(
            str(workdir / "tensorboard" / stage),
            purge_step=resumed_step + 1 if resumed_step else None,
            write_to_disk=is_first(),
        )

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Appends a row of values to metrics.csv and writes them to TensorBoard."""
        row = {"stage": self.stage, "step": step, "split": split}
        row |= {name: f"{value:.6g}" for name, value in values.items()}
        if not is_first():
            return
        if new := [name for name in row if name not in self._columns]:
            self._columns, rows = [*self._columns, *new], _read(self.path)[1]
            _write(self.path, self._columns, rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes an image, [h, w, c] uint8, to TensorBoard."""
        self._tensorboard.add_image(name, pixels, step, dataformats="HWC")

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # metrics.csv reports a full disk
            self._tensorboard.close()


def progress_bar(stage: str, start: int, steps: int) -> tqdm:
    """Returns a progress bar with the time left; outside a terminal it prints a line every 15 seconds."""
    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(total=steps, initial=start, desc=stage, unit="step", mininterval=interval, dynamic_ncols=True)


def warn(text: str) -> None:
    """Prints one line on standard error, above the progress bar if there is one."""
    tqdm.write(f"lsgm: warning: {text}", file=sys.stderr)


def note(text: str) -> None:
    """Prints one line that needs no action on standard error, above the progress bar if there is one."""
    tqdm.write(f"lsgm: note: {text}", file=sys.stderr)


class Speed:
    """Measures steps per second between readings, without the time spent on validation."""

    def __init__(self, step: int):
        self.step, self.since = step, time.monotonic()

    def read(self, step: int) -> float:
        """Returns the steps per second since the last call."""
        now = time.monotonic()
        rate = (step - self.step) / (now - self.since)
        self.step, self.since = step, now
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside this context."""
        begin = time.monotonic()
        yield
        self.since += time.monotonic() - begin


class CompileClock:
    """Counts the seconds that XLA spends compiling after construction."""

    def __init__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if event == "/jax/core/compile/backend_compile_duration":
            self.seconds += duration_secs


def _read(path: pathlib.Path) -> tuple[list[str], list[dict[str, str]]]:
    """Returns the names of the columns, and the rows."""
    if not path.exists():
        return list(COLUMNS), []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        return list(reader.fieldnames or COLUMNS), rows


def _write(path: pathlib.Path, columns: list[str], rows: list[dict[str, str]]) -> None:
    with replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
