"""Many samples to one .npz file, of which only a batch is in memory at a time."""

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np

from lsgm_jax.evaluation import plots
from lsgm_jax.files import replacing
from lsgm_jax.sampling.failures import Failures, are_finite
from lsgm_jax.sampling.sample import Samples

Append = Callable[[dict[str, np.ndarray]], None]


@dataclasses.dataclass(frozen=True)
class Written:
    """What is known of samples that have been written.

    Attributes:
        failures: how many were drawn, and how many failed.
        shown: the first samples that did not fail, as many as a picture shows.
        nfe: network evaluations on a batch, those of the slowest batch.
        nfe_mean: mean over samples of the evaluations that each needs alone.
        seconds: of all solves.
        compile_seconds: of the compilation.
    """

    failures: Failures
    shown: np.ndarray
    nfe: int
    nfe_mean: float
    seconds: float
    compile_seconds: float


def write_samples(batches: Iterable[Samples], path: pathlib.Path) -> Written:
    """Writes samples to an .npz file: "x", "z_0", and "index", the number of each among those that were drawn.

    Samples that failed are not among them.

    Raises:
        UserError: if all failed; the file is then left as it was.
    """
    failures, shown, costs = Failures(), [], []
    with growing_npz(path) as append:
        for batch in batches:
            x, solution = batch.x, batch.solution
            z_0, success = np.asarray(solution.z_0), np.asarray(solution.success)
            failures = failures.and_of(Failures.among(success, x, z_0))
            good = np.flatnonzero(success & are_finite(x, z_0))
            append({"x": x[good], "z_0": z_0[good], "index": batch.first + good})
            shown.append(x[good][: plots.most_shown(x.shape[1:]) - sum(map(len, shown))])
            of_all = float(solution.nfe_mean) * len(x)
            costs.append((int(solution.nfe), of_all, batch.seconds, batch.compile_seconds))
        if failures.total == failures.drawn:
            raise failures.error()
    nfe, total, seconds, compile_seconds = zip(*costs, strict=True)
    mean = sum(total) / failures.drawn
    return Written(failures, np.concatenate(shown), max(nfe), mean, sum(seconds), sum(compile_seconds))


@contextlib.contextmanager
def growing_npz(path: pathlib.Path) -> Iterator[Append]:
    """Yields a function that appends rows to named arrays; at the end they are in an .npz file, in one step."""
    spools: dict[str, _Spool] = {}
    with replacing(path) as partial, partial.open("wb") as file, contextlib.ExitStack() as stack:

        def append(rows: dict[str, np.ndarray]) -> None:
            for name, values in rows.items():
                if name not in spools:
                    # Next to the file, not in the folder of temporary files, which may be in memory.
                    spools[name] = _Spool(stack.enter_context(tempfile.TemporaryFile(dir=partial.parent)))
                spools[name].append(values)

        yield append
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, spool in spools.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    spool.write_to(member)


class _Spool:
    """The rows of one array in a temporary file."""

    def __init__(self, file: IO[bytes]):
        self._file, self._count, self._like = file, 0, np.zeros(0)

    def append(self, rows: np.ndarray) -> None:
        """Adds rows, all of one type and shape."""
        rows = np.ascontiguousarray(rows)
        self._file.write(rows.tobytes())
        self._count, self._like = self._count + len(rows), rows[:0]

    def write_to(self, member: Any) -> None:
        """Writes the array in NumPy's format to a binary file."""
        header = np.lib.format.header_data_from_array_1_0(self._like)
        header["shape"] = (self._count, *self._like.shape[1:])
        np.lib.format.write_array_header_1_0(member, header)
        self._file.seek(0)
        shutil.copyfileobj(self._file, member)
