"""What a pickle may hold: keys that are cheap to hash, and values whose tree is bounded."""

import pickle
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

LONGEST_KEY = 1000
MOST_KEY_BITS = 64
# Containers that hold others twice double the tree with every level, in a few bytes of a pickle.
MOST_VALUES = 2**20
DEEPEST = 64


@runtime_checkable
class Inert(Protocol):
    """An object of a pickle, which becomes a value when its state is complete and found to be right."""

    def set_state(self, state: Any) -> None:
        """Takes the state that follows the object in the pickle."""
        ...

    def finished(self) -> Any:
        """Returns the value."""
        ...


def require_key(key: Any) -> Any:
    """Returns a key of a dictionary.

    A tuple is none, because its hash takes as long as its tree is large; nor is a long number, because many of them
    can share a hash.

    Raises:
        pickle.UnpicklingError: if it is not a number or text, or long.
    """
    kind = type(key)
    if kind in (str, bytes):
        fits = len(key) <= LONGEST_KEY
    else:
        fits = key is None or kind in (bool, float) or (kind is int and key.bit_length() <= MOST_KEY_BITS)
    if not fits:
        raise pickle.UnpicklingError(
            f"its pickle has a key that is a {'long ' if kind in (str, bytes, int) else ''}{kind.__name__}"
        )
    return key


def finished(value: Any) -> Any:
    """Returns a copy of `value` in which every inert object is replaced by its value.

    Raises:
        pickle.UnpicklingError: if the tree is too large or deep, contains itself, or has an unknown object.
    """
    return _Tree().copy(value, 0).value


class _Copy(NamedTuple):
    """A value without inert objects, the number of values in its tree, and the height of that tree."""

    value: Any
    size: int = 1
    height: int = 0


class _Tree:
    """Copies a tree. Each object is copied once, however often it occurs; it counts as often as it occurs."""

    def __init__(self):
        self._copies: dict[int, _Copy | None] = {}  # None while the object is being copied

    def copy(self, value: Any, depth: int) -> _Copy:
        """Returns the copy of a value that is `depth` containers deep where it is met first."""
        if type(value) in SCALARS:
            return _Copy(value)
        if id(value) not in self._copies:
            _require_shallow(depth)
            self._copies[id(value)] = None
            self._copies[id(value)] = self._container(value, depth + 1)
        copied = self._copies[id(value)]
        if copied is None:
            raise pickle.UnpicklingError("its pickle has a container that contains itself")
        return copied

    def _container(self, value: Any, depth: int) -> _Copy:
        kind = type(value)
        if kind in (list, tuple):
            return self._parts(value, depth, kind)
        if kind is dict:
            return self._parts(value.values(), depth, lambda parts: dict(zip(value, parts, strict=True)))
        if kind is types.SimpleNamespace:
            attributes = self.copy(vars(value), depth)
            return attributes._replace(value=types.SimpleNamespace(**attributes.value))
        if isinstance(value, np.ndarray | np.generic):
            return _Copy(value)
        if isinstance(value, Inert):
            return _Copy(value.finished())
        raise pickle.UnpicklingError(f"its pickle has a {kind.__name__} for a value")

    def _parts(self, parts: Iterable[Any], depth: int, make: Callable[[list[Any]], Any]) -> _Copy:
        copies = [self.copy(part, depth) for part in parts]
        size = 1 + sum(copy.size for copy in copies)
        height = 1 + max((copy.height for copy in copies), default=0)
        if size > MOST_VALUES:
            raise pickle.UnpicklingError(f"its pickle repeats containers to more than {MOST_VALUES} values")
        _require_shallow(height)
        return _Copy(make([copy.value for copy in copies]), size, height)


def _require_shallow(depth: int) -> None:
    if depth > DEEPEST:
        raise pickle.UnpicklingError(f"its pickle nests containers more than {DEEPEST} deep")


SCALARS = {type(None), bool, int, float, str, bytes, bytearray}
