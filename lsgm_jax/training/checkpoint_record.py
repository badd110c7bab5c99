"""The record of a checkpoint: its format, its score, and the SHA-256 of its arrays and of the record itself."""

import contextlib
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from lsgm_jax.sealed import array_sums

FORMAT = 4
STATE = "state"  # key of non-trainable state in trees of parameters
STATE_KEYS = {1: "carried", 2: "carried", 3: STATE, 4: STATE}  # the same by format
RESUMABLE = (2, 3, 4)  # formats whose training state can be restored; EMA parameters can be from all
SEALED = (4,)  # formats with checksums
METRIC = "nelbo"  # key of the score in checkpoints, whichever metric a stage is judged by
HALF_WRITTEN = ".orbax-checkpoint-tmp"  # part of the name of a folder that orbax is writing


class UnreadableError(Exception):
    """One checkpoint is damaged or belongs to another model; an older one may be readable."""


def make_record(meta: Mapping[str, Any], trees: Mapping[str, Any], score: float | None) -> dict[str, Any]:
    """Returns the record of a checkpoint.

    Args:
        meta: config and position in the data.
        trees: its arrays, by item.
        score: metric of the EMA parameters on the validation split, lower is better; None if there is none.
    """
    sums = {name: array_sums(tree) for name, tree in trees.items()}
    record = {"format": FORMAT, **meta, "score": score, "sha256": sums}
    return record | {"sha256_of_record": _sum(record)}


def read_record(checkpoint: pathlib.Path) -> dict[str, Any]:
    """Reads the record of a checkpoint, of whichever format.

    Raises:
        UnreadableError: if it is damaged or missing.
    """
    try:
        record = json.loads((checkpoint / "meta" / "metadata").read_bytes())
        expected = record.pop("sha256_of_record", None)
        damaged = expected != _sum(record) if expected is not None else record.get("format") in SEALED
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UnreadableError(f"its record cannot be read, {type(error).__name__}") from error
    if damaged:
        raise UnreadableError("its record is not what was saved")
    return record


def saved_config(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the config in the newest readable record of a stage; None if there is none."""
    steps = sorted((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), reverse=True)
    for step in steps:
        with contextlib.suppress(UnreadableError):
            return read_record(folder / str(step)).get("config")
    return None


def score_of(checkpoint: pathlib.Path) -> float | None:
    """Returns the score of a checkpoint, None if it has none.

    Raises:
        UnreadableError: if its record is damaged or missing.
    """
    record = read_record(checkpoint)
    return record["score"] if "score" in record else _stored_score(checkpoint)


def mend(folder: pathlib.Path) -> Iterator[str]:
    """Deletes checkpoints that a killed process was writing, and mends the scores of the others; yields warnings.

    Orbax does not open a folder with a damaged score, and might delete the best checkpoint for a wrong one.
    """
    for path in folder.glob(f"*{HALF_WRITTEN}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("[0-9]*"):
        if path.name.isdigit() and (warning := _repair_score(path)) is not None:
            yield warning


def renamed(tree: Any, old: str, new: str) -> Any:
    """Renames a key in every dictionary of a pytree, at any depth."""

    def rename(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {new if key == old else key: renamed(value, old, new) for key, value in node.items()}

    return jax.tree.map(rename, tree, is_leaf=lambda node: isinstance(node, dict))


def _repair_score(checkpoint: pathlib.Path) -> str | None:
    """Writes a score again, if that file differs from the record; returns a warning then."""
    path = _score_file(checkpoint)
    try:
        record = read_record(checkpoint)
    except UnreadableError:
        record = {}  # the checkpoint will be found damaged; orbax has to open the folder all the same
    stored, damaged = _stored_score(checkpoint), path.exists() and _stored_score(checkpoint) is None
    if "score" not in record:
        if damaged:
            path.unlink()
        return f"{path} is damaged: that checkpoint counts as not validated" if damaged else None
    if record["score"] == stored and not damaged:
        return None
    if record["score"] is None:
        shutil.rmtree(path.parent)
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({METRIC: record["score"]}))
    return f"{path} is damaged: it was restored from the record of the checkpoint"


def _stored_score(checkpoint: pathlib.Path) -> float | None:
    """Returns the score that orbax has stored; None if there is none, or it is damaged."""
    try:
        return float(json.loads(_score_file(checkpoint).read_bytes())[METRIC])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _score_file(checkpoint: pathlib.Path) -> pathlib.Path:
    return checkpoint / "metrics" / "metrics"


def _sum(record: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(record))  # with lists for tuples
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def as_abstract(like: Any) -> Any:
    """Returns shapes with shardings; an array without sharding goes to the first device, wherever it was saved."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        leaf = ocp.utils.to_shape_dtype_struct(leaf)
        return leaf if leaf.sharding is not None else leaf.update(sharding=here)

    return jax.tree.map(place, like)
