"""The evaluation cache: a file of partial results, from which an interrupted evaluation resumes."""

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
SHARE_OF_SAVING = 0.05  # largest share of the time spent on saving: results may be large


@dataclasses.dataclass(frozen=True)
class Cache:
    """A file of partial results, together with a description of everything they depend on.

    Attributes:
        path: an .npz file; the first write creates its folder.
        of: everything the results depend on, JSON-serialisable. `read` ignores results stored under another value.
    """

    path: pathlib.Path
    of: dict[str, Any]

    def read(self) -> tuple[int, Arrays]:
        """Returns the number of finished jobs and their results.

        They are 0 and {} if the file is missing or damaged, or was written for another `of`.
        """
        try:
            with np.load(self.path) as file:
                stored = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return 0, {}
        if str(stored.pop("of", "")) != _as_json(self.of):
            return 0, {}
        return int(stored.pop("done")), stored

    def write(self, done: int, results: Arrays) -> None:
        """Replaces the file atomically; only the first process writes."""
        if not is_first():
            return  # all processes hold the same results
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
    """Calls `advance(job, results)` for every job in order; each call updates `results` in place.

    With a `cache` it skips the jobs that the file holds, and saves every few seconds and after the last job.

    Args:
        results: initial results; cached ones replace them.
        jobs: number of jobs.
        advance: runs one job.
        cache: file to read and write; None keeps everything in memory.
        label: name of the progress bar; None hides it.

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
    """Returns a hash of all arrays of a tree with their paths, types and shapes: 16 hexadecimal digits."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(np.asarray(leaf))
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def _as_json(of: dict[str, Any]) -> str:
    return json.dumps(of, sort_keys=True)
