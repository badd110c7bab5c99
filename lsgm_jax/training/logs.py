"""Output of a training run: progress bar, warnings, metrics.csv and TensorBoard."""

import contextlib
import csv
import io
import pathlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from tqdm import tqdm

from lsgm_jax.files import is_first, naming, set_aside
from lsgm_jax.sealed import DamagedError, append_sealed, read_sealed, write_sealed
from lsgm_jax.training.tensorboard import Events

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
        self._replace([row for row in rows if row["stage"] != stage or int(row["step"]) <= resumed_step])
        self._events = Events(workdir / "tensorboard" / stage, resumed_step) if is_first() else None

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Appends a row of values to metrics.csv and writes them to TensorBoard."""
        if self._events is None:
            return
        row = {"stage": self.stage, "step": str(step), "split": split}
        row |= {name: f"{value:.6g}" for name, value in values.items()}
        if new := [name for name in row if name not in self._columns]:
            rows = _read(self.path)[1]
            self._columns += new
            self._replace(rows)
        self._append(row)
        for name, value in values.items():
            self._events.scalar(step, f"{split}/{name}", value)
        self._events.flush()

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes an image, [h, w, c] uint8, to TensorBoard."""
        if self._events is not None:
            self._events.image(step, name, pixels)
            self._events.flush()

    def _append(self, row: dict[str, str]) -> None:
        with naming(self.path):
            try:
                append_sealed(self.path, _as_csv(self._columns, [row]))
            except (DamagedError, FileNotFoundError):
                self._replace([*_read(self.path)[1], row])

    def _replace(self, rows: list[dict[str, str]]) -> None:
        header = dict(zip(self._columns, self._columns, strict=True))
        write_sealed(self.path, _as_csv(self._columns, [header, *rows]))

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):  # was reported when it was written
                self._events.close()


def progress_bar(stage: str, start: int, steps: int, *, leave: bool = True) -> tqdm:
    """Returns a progress bar with the time left; outside a terminal it prints a line every 15 seconds.

    Args:
        leave: whether its last line stays.
    """
    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(
        total=steps,
        initial=start,
        desc=stage,
        unit="step",
        mininterval=interval,
        dynamic_ncols=True,
        leave=leave,
    )


@contextlib.contextmanager
def compiling(bar: tqdm, what: str = "") -> Iterator[None]:
    """Shows on a progress bar that the compiler is at work inside this context, and for how many seconds already."""
    over, since = threading.Event(), time.monotonic()

    def show() -> None:
        while not over.wait(1.0):
            bar.set_postfix_str(f"compiling{what}, {time.monotonic() - since:.0f} s")

    shows = threading.Thread(target=show, daemon=True)
    shows.start()
    try:
        yield
    finally:
        over.set()
        shows.join()
        bar.set_postfix_str("", refresh=False)


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
    """Returns the names of the columns, and the rows. A damaged file is renamed, with a warning."""
    try:
        return _parsed(path)
    except FileNotFoundError:
        return list(COLUMNS), []
    except DamagedError as error:
        warn(f"{error}: renamed to {set_aside(path).name}, and a new one begins")
        return list(COLUMNS), []


def _parsed(path: pathlib.Path) -> tuple[list[str], list[dict[str, str]]]:
    try:
        lines = read_sealed(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is damaged: it is no text") from error
    reader = csv.DictReader(lines)
    columns, rows = list(reader.fieldnames or COLUMNS), list(reader)
    whole = [len(row) == len(columns) and None not in row.values() and row["step"].isdigit() for row in rows]
    if rows and not whole[-1]:  # of an older version, which was killed while it wrote the row
        rows.pop()
        whole.pop()
    if not all(whole) or not {"stage", "step", "split"} <= set(columns):
        raise DamagedError(f"{path} is damaged: not every row has {len(columns)} columns and a step")
    return columns, rows


def _as_csv(columns: list[str], rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns).writerows(rows)
    return text.getvalue().encode()
