"""The evaluation cache: a file of partial results, from which an interrupted evaluation resumes."""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from tqdm import tqdm

from lsgm_jax.files import is_first, replacing
from lsgm_jax.sealed import array_sums

Arrays = dict[str, np.ndarray]

FORMAT = 2  # grows when the same inputs give other results, so that no evaluation mixes both
SECONDS_BETWEEN_SAVES = 10.0
SHARE_OF_SAVING = 0.05  # largest share of the time spent on saving: results may be large


@dataclasses.dataclass(frozen=True)
class Cache:
    """A file of partial results, together with a description of everything they depend on.

    Attributes:
        path: an .npz file; the first write creates its folder.
        of: everything the results depend on, JSON-serialisable. `read` ignores results stored under another value, or
            by another version of the package.
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
            if str(stored.pop("sha256")) != digest(stored) or str(stored.pop("of")) != self._of:
                return 0, {}
            return int(stored.pop("done")), stored
        # numpy and zipfile raise types of many kinds for damaged files.
        except Exception:
            return 0, {}

    def write(self, done: int, results: Arrays) -> None:
        """Replaces the file atomically; only the first process writes."""
        if not is_first():
            return  # all processes hold the same results
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"of": np.array(self._of), "done": np.array(done), **results}
        with replacing(self.path) as partial, partial.open("wb") as file:
            np.savez(file, sha256=np.array(digest(content)), **content)  # pyright: ignore[reportArgumentType]

    @property
    def _of(self) -> str:
        """Everything that the results depend on, the code that makes them included."""
        of = {"of": self.of, "format": FORMAT, "lsgm-jax": version("lsgm-jax")}
        return json.dumps(of, sort_keys=True, allow_nan=False)


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
    return hashlib.sha256(json.dumps(array_sums(tree), sort_keys=True).encode()).hexdigest()[:16]
