"""An unpickler that allows only the few names that PyTorch checkpoints need.

A pickle is a program that can call any function it names. Here the names stand for functions of this module, which
build numpy arrays, or for inert classes and strings. The modules that a pickle names are never imported.
"""

import collections
import io
import math
import pickle
import types
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from lsgm_jax.errors import ConversionError

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


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickles what `torch.save` writes.

    Args:
        file: the pickle.
        fetch: returns a storage; None if the pickle must not refer to storages.
    """

    def __init__(self, file: io.BufferedIOBase, fetch: Fetch | None = None):
        super().__init__(file, encoding="utf-8")
        self._fetch = fetch

    def find_class(self, module: str, name: str, /) -> Any:
        """Returns the object that a name stands for here.

        Raises:
            ConversionError: for a name that state dictionaries do not need.
        """
        if (module, name) in CLASSES:
            return CLASSES[module, name]
        if (module, name) in INERT:
            return f"{module}.{name}"
        if (module, name) in FUNCTIONS:
            function = FUNCTIONS[module, name]
            return lambda *args: function(*args)  # a new object: a pickle may set its attributes
        raise ConversionError(
            f"its pickle names {module}.{name}, which no state dictionary needs: refused, and nothing was run; "
            "save the file again from PyTorch with state dictionaries only"
        )

    def persistent_load(self, pid: Any) -> Flat:
        """Returns the storage of an id ("storage", type, key, device, numel[, view]).

        Raises:
            ConversionError: if the id is of another form.
        """
        if self._fetch is None or not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise ConversionError(
                f"its pickle refers to {str(pid)[:60]!r}, which is no storage: it is damaged"
            )
        _, kind, key, _, numel, *view = pid
        if numel < 0:
            raise ConversionError(f"storage {key} has {numel} values: it is damaged")
        storage = self._fetch(str(key), STORAGE_DTYPES[kind], numel)
        if view and view[0] is not None:  # only in files from before 2018
            _, offset, length = view[0]
            return storage[offset : offset + length]
        return storage


def rebuild_tensor(
    storage: Flat, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """Returns a read-only view of a storage; `offset` and `stride` count values. Other attributes are dropped.

    Raises:
        ConversionError: if the view exceeds the storage.
    """
    if type(storage) is not np.ndarray or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise ConversionError("its pickle makes a tensor of what is no storage: it is damaged")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (math.prod(size) and last >= storage.size):
        raise ConversionError(
            f"a tensor of shape {tuple(size)} reaches beyond the {storage.size} values of its storage: it is damaged"
        )
    if not math.prod(size):
        return np.empty(size, storage.dtype)
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def first(value: Tensor, *_: Any) -> Tensor:
    """Returns the tensor of a parameter."""
    return value


def device(*fields: Any) -> str:
    """Returns the name of a device, such as cuda:0."""
    return ":".join(str(field) for field in fields)


def encode(text: str, encoding: str) -> bytes:
    """Decodes bytes as pickle protocol 2 stores them, a latin1 string.

    Raises:
        ConversionError: if the encoding is not latin1.
    """
    if encoding != "latin1":
        raise ConversionError(f"its pickle encodes text in {encoding}, which bytes never need: refused")
    return text.encode("latin1")


class DType:
    """A dtype as numpy pickles it: its code, then a state of which only the byte order matters here."""

    def __init__(self, code: str, *_: Any):
        if np.dtype(code).kind not in "biufcSU":
            raise ConversionError(
                f"its pickle has a numpy array of {code}, which is neither numeric nor text: refused"
            )
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]):
        self.value = self.value.newbyteorder(state[1])


class PickledArray(np.ndarray):
    """A numpy array within a checkpoint; the state that follows it in the pickle sets its content."""

    def __setstate__(self, state: Any, /):
        version, shape, dtype, is_fortran, data = state
        super().__setstate__((version, shape, dtype.value, is_fortran, data))


def empty_array(*_: Any) -> PickledArray:
    """Returns an empty array, whose state follows in the pickle."""
    return PickledArray((0,), np.uint8)


def numpy_scalar(dtype: DType, data: bytes) -> Any:
    """Returns one number."""
    return np.frombuffer(data, dtype.value, 1)[0]


CLASSES = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("argparse", "Namespace"): types.SimpleNamespace,
    ("torch", "Size"): tuple,
}
FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): first,
    ("torch._utils", "_rebuild_parameter_with_state"): first,
    ("torch", "device"): device,
    ("_codecs", "encode"): encode,
    ("numpy", "dtype"): DType,
}
STORAGE_DTYPES = {f"torch.{storage}": DTYPES[name] for name, storage in STORAGES.items()}
for multiarray in ("numpy.core.multiarray", "numpy._core.multiarray"):
    FUNCTIONS |= {(multiarray, "_reconstruct"): empty_array, (multiarray, "scalar"): numpy_scalar}
# Names that are mere labels; they become strings.
INERT = {
    *((name.rpartition(".")[0], name.rpartition(".")[2]) for name in STORAGE_DTYPES),
    *(("torch", name) for name in DTYPES),
    ("numpy", "ndarray"),
    # Lightning stores the state of a callback under its class.
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
}
