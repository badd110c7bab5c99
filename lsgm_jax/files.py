"""Atomic writing of files, by the first of several processes only."""

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from lsgm_jax.jax_internals import process_id


def is_first() -> bool:
    """Returns whether this is the only process or the first of several, the one that prints and writes files.

    Unlike `jax.process_index()`, it starts no backend, so it may be called before `jax.distributed.initialize`.
    """
    return process_id() == 0


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, and moves that file to `path` at the end in one step.

    A reader never sees a file that is half written. Files of other processes than the first are discarded.
    """
    if is_first():
        partial = path.with_name(path.name + ".tmp")
        yield partial
        partial.replace(path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder) / path.name


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a dictionary as JSON, in one step."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
