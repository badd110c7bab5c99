"""Files with their SHA-256 beside them, so that damage is noticed when they are read; and the SHA-256 of arrays.

The checksum of `report.json` is in `.report.json.sha256`. It is written first and lists the old content and the new
one, so that a process may be killed at any moment. Files without a checksum, of older versions, are read as they are.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from lsgm_jax.bounded import LIMITS, is_deeper
from lsgm_jax.errors import UserError
from lsgm_jax.files import is_first, replacing

TRIES = 3  # a file may be replaced between reading it and reading its checksum


class DamagedError(UserError):
    """A file whose content is not what was written; the message names it."""


class _Seal(NamedTuple):
    """The checksum of a content."""

    sha256: str
    length: int

    @classmethod
    def of(cls, content: bytes) -> "_Seal":
        return cls(hashlib.sha256(content).hexdigest(), len(content))

    def begins(self, content: bytes) -> bool:
        """Returns whether the content begins with the one of this checksum."""
        return len(content) >= self.length and _Seal.of(content[: self.length]) == self


def write_sealed(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file, in one step, and its checksum."""
    _seal(path, _Seal.of(content))
    with replacing(path) as partial:
        partial.write_bytes(content)


def append_sealed(path: pathlib.Path, content: bytes) -> None:
    """Appends to a file; after a kill in between, `read_sealed` returns the content before.

    Raises:
        DamagedError: if the file is not what was written.
    """
    if not is_first():
        return
    before = read_sealed(path)
    _seal(path, _Seal.of(before + content))
    with path.open("r+b") as file:
        file.seek(len(before))
        file.write(content)


def read_sealed(path: pathlib.Path) -> bytes:
    """Returns the content of a file.

    Raises:
        DamagedError: if it is not what was written.
        OSError: if the file cannot be read.
    """
    for _ in range(TRIES):
        content, seals = path.read_bytes(), _seals(path)
        if seals is None:
            return content
        for seal in seals:
            # What follows an older content is the torn end of the newest, or else damage.
            torn = len(content) < seals[0].length
            if seal.begins(content) and (torn or len(content) == seal.length):
                return content[: seal.length]
    raise DamagedError(
        f"{path} is damaged: its content is not the one of its checksum, in {_beside(path).name}"
    )


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a dictionary as JSON, in one step, and its checksum.

    Raises:
        ValueError: for NaN and infinity, which JSON does not have; before anything is written.
    """
    write_sealed(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: pathlib.Path, constant: Callable[[str], Any] = float) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Args:
        path: the file.
        constant: what to make of NaN and Infinity, which older versions wrote; gets the name.

    Raises:
        DamagedError: if the file is not what was written, or no dictionary.
        OSError: if it cannot be read.
    """
    content = read_sealed(path)
    try:
        found = json.loads(content, parse_constant=constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError included
        raise DamagedError(f"{path} is damaged ({error})") from error
    if is_deeper(found, LIMITS.nesting):
        raise DamagedError(f"{path} is damaged: it is nested more than {LIMITS.nesting} deep")
    if not isinstance(found, dict):
        raise DamagedError(f"{path} is damaged: it holds a {type(found).__name__}, not an object")
    return found


def array_sums(tree: Any) -> dict[str, str]:
    """Returns the SHA-256 of each array of a tree, with its type and shape, by its path in the tree.

    Sharded arrays have the same as replicated ones. All processes that hold a part of an array have to call this.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _array_sum(_on_host(leaf)) for path, leaf in leaves}


def _array_sum(array: np.ndarray) -> str:
    total = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _beside(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.sha256")


def _seals(path: pathlib.Path) -> list[_Seal] | None:
    """Returns the checksums of the newest content and of the one before; None if the file has none."""
    try:
        *lines, own = _beside(path).read_text().splitlines()
        if own != _own(lines):
            return []
        return [_Seal(sha256, int(length)) for sha256, length in map(str.split, lines)]
    except FileNotFoundError:
        return None
    except ValueError:  # damaged itself
        return []


def _seal(path: pathlib.Path, new: _Seal) -> None:
    """Writes the checksum of the content that is about to be written, before that of the present one."""
    seals = [new]
    with contextlib.suppress(DamagedError, FileNotFoundError):
        seals += {_Seal.of(read_sealed(path))} - {new}
    with replacing(_beside(path)) as partial:
        lines = [f"{seal.sha256} {seal.length}" for seal in seals]
        partial.write_text("\n".join([*lines, _own(lines)]) + "\n")


def _own(lines: Sequence[str]) -> str:
    """Returns the checksum of the checksums: a changed length would pass for a row that is half written."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
