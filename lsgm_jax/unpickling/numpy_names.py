"""The names that numpy's arrays, dtypes and numbers have in pickles, and inert objects in their places.

numpy's own functions trust their arguments: the state of a dtype can claim that its values are objects, and numpy then
follows the bytes of the file as pointers. Here a dtype is its code alone, and an array is made when dtype, shape and
number of bytes agree.
"""

import math
import pickle
import re
from typing import Any

import numpy as np

from lsgm_jax.errors import in_one_line
from lsgm_jax.unpickling.machine import Function, Names

# Numbers and text. Objects, dates, structures and long doubles are none.
CODE = re.compile(r"[<>=|]?(\?|b1|[iu][1248]|f[248]|c(8|16)|[SU][1-9]\d{0,8})")
MOST_AXES = 32
ZEROED = 8  # the flag of text, that new arrays are zeros; the others say that values are objects
LARGEST_CHARACTER = 0x10FFFF


def refused(what: str) -> pickle.UnpicklingError:
    """Returns the error of an array that is not what data have."""
    return pickle.UnpicklingError(in_one_line(f"its pickle has {what}: refused"))


class PickledDType:
    """A dtype: its code, then a state of which the byte order matters. All else in it belongs to other dtypes."""

    def __init__(self, code: Any, *_: Any):
        if type(code) is not str or not CODE.fullmatch(code):
            shown = code[:40] if type(code) is str else type(code).__name__
            raise refused(f"a numpy array of {shown}, which is neither numeric nor text")
        self.value = np.dtype(code)

    def set_state(self, state: Any) -> None:
        """Takes (version, byte order, subarray, names, fields, size, alignment[, flags[, metadata]])."""
        _, order, *fields = state
        if any(field is not None for field in fields[:3]) or fields[5:6] not in ([], [0], [ZEROED]):
            raise refused("a numpy array with fields or objects, which is neither numeric nor text")
        if order not in ("<", ">", "=", "|"):
            raise refused("a numpy array of unknown byte order")
        self.value = self.value.newbyteorder(order)

    def finished(self) -> np.dtype:
        """Returns the dtype."""
        return self.value


class PickledArray:
    """An array: empty at first, then its state."""

    def __init__(self, *_: Any):
        self._value: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        """Takes ([version,] shape, dtype, whether the first axis is innermost, bytes)."""
        shape, dtype, is_fortran, data = state[-4:]
        self._value = array_of_bytes(data, dtype, shape, "F" if is_fortran else "C")

    def finished(self) -> np.ndarray:
        """Returns the array.

        Raises:
            pickle.UnpicklingError: if its content is missing.
        """
        if self._value is None:
            raise refused("a numpy array without its content")
        return self._value


def array_of_bytes(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """Returns a read-only array.

    Raises:
        pickle.UnpicklingError: unless `data` are exactly the bytes of an array of `dtype` and `shape`.
    """
    if type(dtype) is not PickledDType or type(shape) is not tuple or len(shape) > MOST_AXES:
        raise refused("a numpy array without dtype or shape")
    if any(type(side) is not int or not 0 <= side < 2**48 for side in shape) or order not in ("C", "F"):
        raise refused("a numpy array whose shape is none")
    content = data.encode("latin-1") if type(data) is str else data
    if type(content) not in (bytes, bytearray):
        raise refused(f"a numpy array whose content is a {type(content).__name__}")
    if len(content) != math.prod(shape) * dtype.value.itemsize:
        raise refused(f"a numpy array of {list(shape)} {dtype.value} with {len(content)} bytes")
    values = np.frombuffer(content, dtype.value)
    if dtype.value.kind == "U" and values.size and _largest_character(values) > LARGEST_CHARACTER:
        raise refused("a numpy array of text with characters that do not exist")
    return values.reshape(shape, order=order)


def _largest_character(text: np.ndarray) -> int:
    return int(text.view(np.dtype(np.uint32).newbyteorder(text.dtype.byteorder)).max())


def scalar(dtype: Any, data: Any) -> np.generic:
    """Returns one number or text of numpy."""
    return array_of_bytes(data, dtype, (1,), "C")[0]


def encode(text: Any, encoding: Any) -> bytes:
    """Returns the bytes that pickle protocol 2 stores as a latin1 string.

    Raises:
        pickle.UnpicklingError: if the encoding is not latin1.
    """
    if encoding != "latin1":
        shown = encoding[:40] if type(encoding) is str else f"a {type(encoding).__name__}"
        raise pickle.UnpicklingError(
            in_one_line(f"its pickle encodes text in {shown}, which bytes never need: refused")
        )
    return text.encode("latin1")


NUMPY_NAMES: Names = {
    ("_codecs", "encode"): Function(encode),
    # Protocol 2 has no other word for the empty ones.
    ("__builtin__", "bytes"): Function(lambda: b""),
    ("builtins", "bytes"): Function(lambda: b""),
    ("numpy", "dtype"): Function(PickledDType),
    ("numpy", "ndarray"): "numpy.ndarray",
    # numpy 2 renamed its modules.
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Function(PickledArray) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Function(scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Function(array_of_bytes) for core in ("core", "_core")},
}
