"""NPY and NPZ files that others made: numbers and text only, and no more memory than their files have bytes for."""

import contextlib
import io
import math
import pathlib
import struct
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from lsgm_jax.bounded import (
    AGAIN,
    LIMITS,
    Limits,
    Readable,
    check_ended,
    check_size,
    damaged,
    read_exactly,
    reading,
    shown,
)
from lsgm_jax.errors import DataError, UserError, in_one_line, printable

NUMBERS_AND_TEXT = "biufcSU"  # kinds of dtypes; objects would be pickles
HEADER_BYTES = 10_000  # numpy's own limit
LENGTHS = {1: "<H", 2: "<I"}  # version of the format -> the length of its header
READERS = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
Arrays = dict[str, Shaped[np.ndarray, "..."]]


class Header(NamedTuple):
    """What the header of an NPY file says, and the bytes before the values."""

    shape: tuple[int, ...]
    columns_first: bool
    dtype: np.dtype
    start: int

    @property
    def bytes(self) -> int:
        """The bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(
    file: pathlib.Path | io.IOBase,
    origin: object,
    *,
    names: Sequence[str] | None = None,
    limits: Limits = LIMITS,
    error: type[UserError] = DataError,
) -> Arrays:
    """Returns the arrays of an NPZ file by name.

    Args:
        file: the path or the open file.
        origin: name of the file in errors.
        names: the arrays to read, those of them that are there; None for all.
        limits: of the members and of their size, each and together.
        error: class of the errors.

    Raises:
        UserError: of the type `error`, if the file cannot be read, is damaged, expands beyond `limits`, or has arrays
            of anything but numbers and text.
    """
    with reading(origin, error), zipfile.ZipFile(file) as archive:
        members = _members(archive, origin, limits, error)
        chosen = [name for name in members if names is None or name in names]
        size = _size_of(archive)
        total = sum(members[name].file_size for name in chosen)
        check_size(total, limits.expanded(size), origin, error=error)
        return {
            name: _read_member(archive, members[name], f"{printable(name)} in {origin}", error)
            for name in chosen
        }


def read_npy(
    stream: Readable, size: int, origin: object, *, error: type[UserError] = DataError
) -> Shaped[np.ndarray, "..."]:
    """Returns the array of an NPY file whose `size` bytes are the rest of a stream.

    Raises:
        UserError: of the type `error`, if the header is damaged, does not fit `size`, or names other values than
            numbers and text.
    """
    header = _checked_header(stream, size, origin, error)
    values = read_exactly(stream, header.bytes, origin, most=size, error=error)
    check_ended(stream, origin, error=error)
    with reading(origin, error):
        return np.ndarray(header.shape, header.dtype, values, order="F" if header.columns_first else "C")


def map_npy(path: pathlib.Path, *, error: type[UserError] = DataError) -> Shaped[np.ndarray, "..."]:
    """Returns the array of an NPY file without reading it: a read-only memory map.

    Raises:
        UserError: as `read_npy`.
    """
    with reading(path, error), path.open("rb") as file:
        header = _checked_header(file, path.stat().st_size, path, error)
        if not header.bytes:
            return np.zeros(header.shape, header.dtype)
        order = "F" if header.columns_first else "C"
        return np.memmap(path, header.dtype, "r", header.start, header.shape, order)


def _members(
    archive: zipfile.ZipFile, origin: object, limits: Limits, error: type[UserError]
) -> dict[str, zipfile.ZipInfo]:
    """Returns the members by the names of their arrays."""
    infos = archive.infolist()
    check_size(len(infos), limits.members, origin, what="members", error=error)
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.removesuffix(".npy")
        if name in found:
            raise damaged(origin, f"it has {shown(name)} twice", error)
        found[name] = info
    return found


def _size_of(archive: zipfile.ZipFile) -> int:
    assert archive.fp is not None
    return archive.fp.seek(0, io.SEEK_END)


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, origin: str, error: type[UserError]
) -> Shaped[np.ndarray, "..."]:
    with reading(origin, error), archive.open(info) as stream:
        return read_npy(stream, info.file_size, origin, error=error)


def _checked_header(stream: Readable, size: int, origin: object, error: type[UserError]) -> Header:
    """Returns the header if it describes exactly the `size` bytes of the file."""
    with _header_errors(origin, error):
        header = _header(stream, size)
    if header.dtype.kind not in NUMBERS_AND_TEXT or not header.dtype.itemsize:
        raise error(
            f"{origin} has values of the type {shown(str(header.dtype))}, and only numbers and text are taken: save it "
            "again without objects"
        )
    there = size - header.start
    if header.bytes != there:
        shape = " x ".join(map(str, header.shape)) or "one value"
        raise damaged(
            origin,
            f"its header says {shape} of {header.dtype}, {header.bytes} bytes, where it has {there}",
            error,
        )
    return header


@contextlib.contextmanager
def _header_errors(origin: object, error: type[UserError]) -> Iterator[None]:
    """Converts the errors of headers, which are literals of Python: numpy raises anything for damaged ones."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers from Python 2, which numpy reads all the same
            yield
    except Exception as found:
        reason = in_one_line(str(found))[:120] or type(found).__name__
        raise error(f"{origin} is no NPY file, or damaged ({reason}): {AGAIN}") from found


def _header(stream: Readable, size: int) -> Header:
    version, _ = np.lib.format.read_magic(stream)  # pyright: ignore[reportArgumentType]
    if version not in LENGTHS:
        raise ValueError(f"version {version} of the format is for records, which are not read")
    packed = stream.read(struct.calcsize(LENGTHS[version]))
    (length,) = struct.unpack(LENGTHS[version], packed)
    if length > min(size, HEADER_BYTES):
        raise ValueError(f"a header of {length} bytes")
    text = stream.read(length)
    shape, columns_first, dtype = READERS[version](io.BytesIO(packed + text))
    if any(type(axis) is not int or axis < 0 for axis in shape):
        raise ValueError(f"the shape {shape}")
    start = np.lib.format.MAGIC_LEN + len(packed) + length
    return Header(shape, columns_first, dtype, start)
