"""report.json: what is known about a run, added to by each command."""

import json
import pathlib
from typing import Any


def read_report(workdir: pathlib.Path) -> dict[str, Any]:
    """The report so far, empty if there is none or if it is not readable."""
    try:
        return json.loads((workdir / "report.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes JSON in one step; a reader never sees half a file."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def add_to_report(workdir: pathlib.Path, **entries: Any) -> dict[str, Any]:
    """Merges `entries` into report.json and returns all of it."""
    report = read_report(workdir) | entries
    write_json(workdir / "report.json", report)
    return report
