"""Numeric arrays of MATLAB files of version 5, as `save -v6` and `save -v7` write them.

`scipy.io.loadmat` allocates what a tag states, and follows cells within cells until the process crashes. Here a file is
a sequence of elements, each a tag (type and size) and its bytes, and an element never reaches beyond the one around it.
"""

import math
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from lsgm_jax.bounded import LIMITS, damaged, read_exactly, reading
from lsgm_jax.errors import DataError

HEADER = 128
VARIABLE_BYTES = 2**30  # the published characters have 152 MB
ORDERS = {b"IM": "<", b"MI": ">"}  # the last bytes of the header -> the order of bytes
VERSION, VERSION_HDF5 = 0x0100, 0x0200
MATRIX, COMPRESSED = 14, 15
# Type of the values in the file -> dtype. MATLAB stores whole doubles in fewer bytes.
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# Class of the array -> dtype; the other classes are cells, structures, objects, text and sparse arrays.
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
COMPLEX = 0x0800  # a bit of the flags


class Element(NamedTuple):
    """A part of a variable, and the position behind it."""

    kind: int
    content: memoryview
    end: int


def read_matlab(path: pathlib.Path, names: Sequence[str]) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Returns those of the variables `names` that a file has.

    Raises:
        DataError: if the file cannot be read, is damaged or of another version, or one of them is not a numeric array.
    """
    found: dict[str, np.ndarray] = {}
    for order, variable in _variables(path):
        kind, shape, name, values = _parts(variable, order, path)
        if name not in names:
            continue
        if name in found:
            raise damaged(path, f"it has {name!r} twice")
        found[name] = _array(kind, shape, name, values, order, path)
    return found


def _variables(path: pathlib.Path) -> Iterator[tuple[str, memoryview]]:
    """Yields the order of bytes, and the bytes of each variable, decompressed."""
    with reading(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        order = _order(file.read(HEADER), path)
        while tag := file.read(8):
            kind, length = struct.unpack(f"{order}II", tag)
            if length > size - file.tell():
                raise damaged(path, f"it ends within a variable of {length} bytes")
            content = read_exactly(file, length, path, most=VARIABLE_BYTES).data
            if kind == COMPRESSED:
                content = memoryview(_inflated(content, path))
                kind, length = struct.unpack_from(f"{order}II", content)
                content = content[8:]
            if kind != MATRIX or length != len(content):
                raise damaged(path, f"an element of type {kind} and {length} bytes is no variable")
            yield order, content


def _order(header: bytes, path: pathlib.Path) -> str:
    order = ORDERS.get(header[126:])
    if order is None:
        raise DataError(f"{path} is no MATLAB file of version 5: get it again, or save it with -v7")
    (version,) = struct.unpack(f"{order}H", header[124:126])
    if version != VERSION:
        which = "7.3 (HDF5)" if version == VERSION_HDF5 else hex(version)
        raise DataError(f"{path} is a MATLAB file of version {which}, which is not read: save it with -v7")
    return order


def _inflated(packed: memoryview, path: pathlib.Path) -> bytes:
    most = LIMITS.expanded(len(packed), VARIABLE_BYTES)
    stream = zlib.decompressobj()
    content = stream.decompress(packed, most)
    if not stream.eof or stream.unused_data:
        expands = (
            f"a variable expands to more than {most} bytes"
            if len(content) == most
            else "a variable ends early"
        )
        raise damaged(path, expands)
    return content


def _parts(
    variable: memoryview, order: str, path: pathlib.Path
) -> tuple[int, tuple[int, ...], str, memoryview]:
    """Returns the flags, the shape and the name of a variable, and the bytes that follow."""
    with reading(path):
        flags = _element(variable, 0, order)
        shape = _element(variable, flags.end, order)
        name = _element(variable, shape.end, order)
        (kind,) = struct.unpack_from(f"{order}I", flags.content)
        axes = struct.unpack(f"{order}{len(shape.content) // 4}i", shape.content)
        return kind, axes, bytes(name.content).decode("ascii"), variable[name.end :]


def _element(content: memoryview, at: int, order: str) -> Element:
    """Returns the element at a position; up to four bytes stand within its tag."""
    (first,) = struct.unpack_from(f"{order}I", content, at)
    if length := first >> 16:
        kind, start, end = first & 0xFFFF, at + 4, at + 8
    else:
        kind, length = struct.unpack_from(f"{order}II", content, at)
        start = at + 8
        end = start + length + -length % 8
    if length > end - start or start + length > len(content):
        raise ValueError(f"an element of {length} bytes at {at} reaches beyond its variable")
    return Element(kind, content[start : start + length], end)


def _array(
    flags: int, shape: tuple[int, ...], name: str, rest: memoryview, order: str, path: pathlib.Path
) -> Shaped[np.ndarray, "..."]:
    """Returns a numeric array, whose values are in column-major order."""
    origin = f"{name!r} in {path}"
    dtype = CLASSES.get(flags & 0xFF)
    if dtype is None or flags & COMPLEX:
        raise DataError(f"{origin} is no array of real numbers: it is another file")
    with reading(origin):
        values = _element(rest, 0, order)
        stored = np.dtype(order + STORED.get(values.kind, "V1"))
        if min(shape, default=-1) < 0 or stored.kind == "V":
            raise ValueError(f"the shape {shape} of values of type {values.kind}")
        if math.prod(shape) * stored.itemsize != len(values.content):
            raise ValueError(f"{len(values.content)} bytes for {' x '.join(map(str, shape))} of {stored}")
        return np.frombuffer(values.content, stored).astype(dtype).reshape(shape, order="F")
