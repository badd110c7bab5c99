"""What a checkpoint holds and where: a search by content, because the names that checkpoints give their parts vary."""

import collections
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Keys = tuple[str, ...]


class Found(NamedTuple):
    """Something within a checkpoint, and the keys that lead to it."""

    keys: Keys
    value: Any

    @property
    def place(self) -> str:
        """The keys as messages show them, on one line whatever the file says."""
        return " ".join("/".join(self.keys).split()) or "the top level"


def containers(checkpoint: Any) -> list[Found]:
    """Every mapping, list and namespace of `checkpoint` once, itself included, from the outside in.

    What is filed under several keys is found under the first.
    """
    todo, seen, found = collections.deque([Found((), checkpoint)]), set(), []
    while todo:
        keys, value = todo.popleft()
        children = _children(value)
        if children is None or id(value) in seen:
            continue
        seen.add(id(value))
        found.append(Found(keys, value))
        todo.extend(Found((*keys, str(key)), child) for key, child in children)
    return found


def _children(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """What a container contains; None for anything else."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, types.SimpleNamespace):
        return vars(value).items()
    if isinstance(value, list | tuple):
        return enumerate(value)
    return None


def state_dicts(found: Iterable[Found], name: re.Pattern[str]) -> Iterator[Found]:
    """State dicts with a tensor that matches `name`, whose first group is what stands before all of its names.

    Such prefixes, as `module.` of a network trained on several devices, are taken off. A mapping with tensors
    under several of them is as many state dicts, and a prefix is then the last key.
    """
    for keys, value in found:
        if isinstance(value, Mapping):
            tensors = {key: child for key, child in value.items() if isinstance(child, np.ndarray)}
            matches = [match for key in tensors if (match := name.fullmatch(str(key)))]
            for prefix in dict.fromkeys(match[1] or "" for match in matches):
                yield Found((*keys, prefix) if prefix else keys, _below(tensors, prefix))


def _below(tensors: Mapping[Any, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {str(key).removeprefix(prefix): t for key, t in tensors.items() if str(key).startswith(prefix)}
