"""Long evaluations that go on where they were stopped: what they have so far is cache in a file."""

import dataclasses
import hashlib
import json
import pathlib
import time
import zipfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lsgm_jax.files import is_first, replacing

Arrays = dict[str, np.ndarray]

SECONDS_BETWEEN_SAVES = 10.0
SHARE_OF_SAVING = 0.05  # of the time, at most: what is cache may be large


@dataclasses.dataclass(frozen=True)
class Cache:
    """A file of partial results and what they are of.

    Attributes:
        path: an .npz file; its folder is made when it is needed.
        of: everything the results depend on, as JSON has it. Results of anything else are not taken up.
    """

    path: pathlib.Path
    of: dict[str, Any]

    def read(self) -> tuple[int, Arrays]:
        """Jobs done, and their results; none if there is no file, or it is damaged or of something else."""
        try:
            with np.load(self.path) as file:
                stored = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return 0, {}
        if str(stored.pop("of", "")) != _as_json(self.of):
            return 0, {}
        return int(stored.pop("done")), stored

    def write(self, done: int, results: Arrays) -> None:
        """Replaces the file in one step."""
        if not is_first():
            return  # all processes hold the same
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as partial, partial.open("wb") as file:
            np.savez(file, of=np.array(_as_json(self.of)), done=np.array(done), **results)  # pyright: ignore[reportArgumentType]


def accumulate(
    results: Arrays,
    jobs: int,
    advance: Callable[[int, Arrays], None],
    *,
    cache: Cache | None = None,
    label: str | None = None,
) -> Arrays:
    """Calls `advance(job, results)` for each of the jobs in order, which adds to `results` in place.

    With `cache` it starts after the jobs that the file has, and saves every few seconds and at the end.

    Args:
        results: how they begin.
        label: name of the progress bar; None shows none.

    Returns:
        The results of all jobs.
    """
    done, stored = cache.read() if cache else (0, {})
    if done:
        results = stored
    saved, cost = time.monotonic(), 0.0
    with tqdm(total=jobs, initial=done, desc=label, disable=label is None, leave=False) as bar:
        for job in range(done, jobs):
            advance(job, results)
            bar.update()
            since = time.monotonic() - saved
            due = since > max(SECONDS_BETWEEN_SAVES, cost / SHARE_OF_SAVING)
            if cache and (due or job == jobs - 1):
                begin = time.monotonic()
                cache.write(job + 1, results)
                saved = time.monotonic()
                cost = saved - begin
    return results


def digest(tree: Any) -> str:
    """A hash of all arrays of a tree, their names, types and shapes: 16 hexadecimal digits."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(np.asarray(leaf))
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def _as_json(of: dict[str, Any]) -> str:
    return json.dumps(of, sort_keys=True)
