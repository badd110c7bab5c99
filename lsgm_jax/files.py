"""Files that a reader never sees half written."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a name to write to; what is there at the end takes the place of `path` in one step."""
    partial = path.with_name(path.name + ".tmp")
    yield partial
    partial.replace(path)


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a dictionary as JSON in one step."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
