"""The names that PyTorch checkpoints need in a pickle, and what stands in their places: numpy arrays, and text.

The modules that a pickle names are never imported.
"""

import functools
import math
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from lsgm_jax.errors import ConversionError
from lsgm_jax.unpickling.machine import Function, Names, Readable, load
from lsgm_jax.unpickling.numpy_names import NUMPY_NAMES
from lsgm_jax.unpickling.values import require_key

Flat = Shaped[np.ndarray, "numel"]
Tensor = Shaped[np.ndarray, "..."]
Fetch = Callable[[str, np.dtype, int], Flat]  # key, dtype, number of values -> the storage

# Names of dtypes in torch -> the old names of their storages.
STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
    "complex128": "ComplexDoubleStorage",
}
DTYPES = {name: np.dtype(jnp.bfloat16 if name == "bfloat16" else name) for name in STORAGES}
STORAGE_DTYPES = {f"torch.{storage}": DTYPES[name] for name, storage in STORAGES.items()}
MOST_AXES = 32
# A tensor that `expand` made repeats values; a file of a few bytes must not hold gigabytes.
MOST_REPEATED = 2**20


class Storage(NamedTuple):
    """The memory of tensors, flat."""

    key: str
    values: Flat


def load_torch(file: Readable, fetch: Fetch | None = None) -> Any:
    """Returns the value of the next pickle of `torch.save`, with arrays for tensors.

    Args:
        file: is left behind the pickle.
        fetch: returns a storage; None if the pickle must not refer to storages.

    Raises:
        pickle.UnpicklingError: if the pickle is damaged, or names what state dictionaries do not need.
        ConversionError: if a tensor or a storage is not what it should be.
    """
    return load(file, NAMES, functools.partial(_storage, fetch) if fetch else None)


def _storage(fetch: Fetch, pid: Any) -> Storage:
    """Returns the storage of an id ("storage", type, key, device, numel[, view]).

    Raises:
        ConversionError: if the id is of another form.
    """
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        raise ConversionError("its pickle refers to what is no storage: it is damaged")
    _, kind, key, _, numel, *view = pid
    if type(kind) is not str or kind not in STORAGE_DTYPES:
        shown = kind[:40] if type(kind) is str else f"a {type(kind).__name__}"
        raise ConversionError(f"its pickle has a storage of {shown}, which is not supported")
    key = str(require_key(key))
    if not _are_counts(numel):
        shown = numel if type(numel) is int else f"a {type(numel).__name__} of"
        raise ConversionError(f"storage {key} has {shown} values: it is damaged")
    values = fetch(key, STORAGE_DTYPES[kind], numel)
    if view and view[0] is not None:  # only in files from before 2018
        _, offset, length = view[0]
        if not _are_counts(offset, length) or offset + length > values.size:
            raise ConversionError(
                f"a view of storage {key} reaches beyond its {values.size} values: it is damaged"
            )
        values = values[offset : offset + length]
    return Storage(key, values)


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Returns a read-only view of a storage; `offset` and `stride` count values. Other attributes are dropped.

    Raises:
        ConversionError: if the view exceeds the storage, or repeats more of it than `MOST_REPEATED` values.
    """
    if type(storage) is not Storage:
        raise ConversionError("its pickle makes a tensor of what is no storage: it is damaged")
    if not type(size) is type(stride) is tuple or not len(size) == len(stride) <= MOST_AXES:
        raise ConversionError("its pickle has a tensor whose shape or strides are none: it is damaged")
    values, count = storage.values, math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not _are_counts(offset, *size, *stride) or (count and last >= values.size):
        raise ConversionError(
            f"a tensor of shape {size} reaches beyond the {values.size} values of its storage: it is damaged"
        )
    if count > max(values.size, MOST_REPEATED):
        raise ConversionError(
            f"a tensor of shape {size} repeats the {values.size} values of its storage: save a clone of it"
        )
    if not count:
        return np.empty(size, values.dtype)
    strides = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, strides, writeable=False)


def device(*fields: Any) -> str:
    """Returns the name of a device, such as cuda:0."""
    if not all(type(field) in (str, int) for field in fields):
        raise ConversionError("its pickle has a device that is none: it is damaged")
    return ":".join(str(field) for field in fields)


def ordered(items: Any = ()) -> dict[Any, Any]:
    """Returns a dictionary of pairs; Python 2 pickles the items of an OrderedDict as its argument."""
    return {require_key(key): value for key, value in items}


def same(value: Any, *_: Any) -> Any:
    """Returns the first argument: the tensor of a parameter, or the sides of a shape."""
    return value


# Names that are mere labels.
LABELS = {
    *(tuple(name.rsplit(".", 1)) for name in STORAGE_DTYPES),
    *(("torch", name) for name in DTYPES),
    # Lightning stores the state of a callback under its class.
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
}
NAMES: Names = {
    **NUMPY_NAMES,
    **{(module, name): f"{module}.{name}" for module, name in LABELS},
    ("collections", "OrderedDict"): Function(ordered),
    ("argparse", "Namespace"): Function(types.SimpleNamespace),
    ("torch", "Size"): Function(same),
    ("torch", "device"): Function(device),
    ("torch._utils", "_rebuild_tensor"): Function(rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function(rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(same),
    ("torch._utils", "_rebuild_parameter_with_state"): Function(same),
}
