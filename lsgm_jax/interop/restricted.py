"""An unpickler that knows the few names PyTorch checkpoints need, and refuses every other.

A pickle is a program: it names functions and has them called. Here the names lead to our own functions, which build
numpy arrays, or to inert classes and strings; no name leads to the module that it mentions.
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
Fetch = Callable[[str, np.dtype, int], Flat]  # key, dtype, values -> the storage

# torch's names of dtypes -> the old names of their storages.
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
        fetch: finds a storage; None where a pickle may not refer to any.
    """

    def __init__(self, file: io.BufferedIOBase, fetch: Fetch | None = None):
        super().__init__(file, encoding="utf-8")
        self._fetch = fetch

    def find_class(self, module: str, name: str, /) -> Any:
        """What a name of the pickle stands for here.

        Raises:
            ConversionError: if no state dictionary needs it.
        """
        if (module, name) in CLASSES:
            return CLASSES[module, name]
        if (module, name) in INERT:
            return f"{module}.{name}"
        if (module, name) in FUNCTIONS:
            function = FUNCTIONS[module, name]
            return lambda *args: function(*args)  # a new one: a pickle may set attributes of what it is given
        raise ConversionError(
            f"its pickle asks for {module}.{name}, which no state dictionary needs: refused, and nothing was run; "
            "save the file again from PyTorch with state dictionaries only"
        )

    def persistent_load(self, pid: Any) -> Flat:
        """The storage that an id ("storage", type, key, device, numel[, view]) describes.

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
        if view and view[0] is not None:  # only in files of before 2018
            _, offset, length = view[0]
            return storage[offset : offset + length]
        return storage


def rebuild_tensor(
    storage: Flat, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    """A read-only view of a storage; `offset` and `stride` count values. What else a tensor had is dropped.

    Raises:
        ConversionError: if the view leaves the storage.
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
    """A parameter is its tensor."""
    return value


def device(*parts: Any) -> str:
    """Such as cuda:0."""
    return ":".join(str(part) for part in parts)


def encode(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes.

    Raises:
        ConversionError: if it is another encoding.
    """
    if encoding != "latin1":
        raise ConversionError(f"its pickle encodes text in {encoding}, which bytes never need: refused")
    return text.encode("latin1")


class DType:
    """A dtype as numpy pickles it: its code, then a state of which only the byte order matters for numbers."""

    def __init__(self, code: str, *_: Any):
        if np.dtype(code).kind not in "biufcSU":
            raise ConversionError(
                f"its pickle has a numpy array of {code}, which is no number or text: refused"
            )
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]):
        self.value = self.value.newbyteorder(state[1])


class PickledArray(np.ndarray):
    """A numpy array within a checkpoint, filled by the state that follows it in the pickle."""

    def __setstate__(self, state: Any, /):
        version, shape, dtype, is_fortran, data = state
        super().__setstate__((version, shape, dtype.value, is_fortran, data))


def empty_array(*_: Any) -> PickledArray:
    """Its state says what it is."""
    return PickledArray((0,), np.uint8)


def numpy_scalar(dtype: DType, data: bytes) -> Any:
    """One number."""
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
# Names that only label; they become strings.
INERT = {
    *((name.rpartition(".")[0], name.rpartition(".")[2]) for name in STORAGE_DTYPES),
    *(("torch", name) for name in DTYPES),
    ("numpy", "ndarray"),
    # Lightning files a callback's state under its class.
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
}
