"""Files that a reader never sees half written, and that one process writes if several compute together."""

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from jax._src.distributed import global_state


def is_first() -> bool:
    """Whether this process speaks and writes for all: the only one, or the first of several.

    `jax.process_index()` would start a backend, before which processes have to join.
    """
    return global_state.process_id == 0


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a name to write to; what is there at the end takes the place of `path` in one step.

    What other processes than the first write is thrown away.
    """
    if is_first():
        partial = path.with_name(path.name + ".tmp")
        yield partial
        partial.replace(path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder) / path.name


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a dictionary as JSON in one step."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
