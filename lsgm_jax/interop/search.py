"""A search of checkpoints by content, because the keys of their networks vary."""

import collections
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Keys = tuple[str, ...]


class Found(NamedTuple):
    """A value within a checkpoint, and the keys that lead to it."""

    keys: Keys
    value: Any

    @property
    def place(self) -> str:
        """The keys as one line for messages, without line breaks in them."""
        return " ".join("/".join(self.keys).split()) or "the top level"


def containers(checkpoint: Any) -> list[Found]:
    """Returns every mapping, list and namespace of `checkpoint` once, itself included, in breadth-first order.

    An object with several keys is found under the first.
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
    """Returns the (key, value) pairs of a container; None for other values."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, types.SimpleNamespace):
        return vars(value).items()
    if isinstance(value, list | tuple):
        return enumerate(value)
    return None


def state_dicts(found: Iterable[Found], name: re.Pattern[str]) -> Iterator[Found]:
    """Yields the state dicts with a tensor whose name matches `name`; the first group is the prefix of all names.

    Prefixes are removed, such as `module.` of a network trained on several devices. A mapping with several prefixes
    gives several state dicts. The prefix becomes the last key of the result.
    """
    for keys, value in found:
        if isinstance(value, Mapping):
            tensors = {key: child for key, child in value.items() if isinstance(child, np.ndarray)}
            matches = [match for key in tensors if (match := name.fullmatch(str(key)))]
            for prefix in dict.fromkeys(match[1] or "" for match in matches):
                yield Found((*keys, prefix) if prefix else keys, _below(tensors, prefix))


def _below(tensors: Mapping[Any, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {str(key).removeprefix(prefix): t for key, t in tensors.items() if str(key).startswith(prefix)}
