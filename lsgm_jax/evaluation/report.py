"""report.json: what is known about a run, added to by each command."""

import json
import pathlib
from typing import Any

from lsgm_jax.files import write_json


def read_report(workdir: pathlib.Path) -> dict[str, Any]:
    """The report so far, empty if there is none or if it is not readable."""
    try:
        return json.loads((workdir / "report.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def add_to_report(workdir: pathlib.Path, **entries: Any) -> dict[str, Any]:
    """Merges `entries` into report.json and returns all of it."""
    report = read_report(workdir) | entries
    write_json(workdir / "report.json", report)
    return report
