"""Reads files of `torch.save` to numpy arrays, without PyTorch and without running code from the file.

Two layouts exist. Since PyTorch 1.6 a file is an uncompressed zip with one pickle, and an entry for each storage (the
flat memory that tensors are views of). Before, it was a sequence of five pickles followed by the storages.
`restricted.py` has the names that a pickle may use.
"""

import io
import mmap
import os
import pathlib
import pickle
import struct
import zipfile
from typing import Any

import numpy as np

from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.restricted import Flat, RestrictedUnpickler

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Errors of damaged or hostile pickles, from the unpickler or from the objects that it builds.
BROKEN = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    NotImplementedError,
)


def read_torch(path: str | os.PathLike[str]) -> Any:
    """Returns what `torch.save` wrote: dictionaries, lists and numbers, with read-only numpy arrays for tensors.

    Arrays of a zip file are memory-mapped: a file of 3 GB takes as much memory as the tensors that are used. The file
    has to stay in place while they are in use. Storages of the older layout are read into memory once. Tensors that
    shared memory share it here. An `argparse.Namespace` becomes a `types.SimpleNamespace`; devices and dtypes become
    strings.

    Raises:
        ConversionError: if the file does not exist, is damaged or not from `torch.save`, or if its pickle names
            anything that state dictionaries do not need. No code from the file runs.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            return _read(file)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read ({error.strerror or error})") from error
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConversionError(
            f"{path}: damaged, or no file of torch.save ({reason}): download it again"
        ) from error


def _read(file: io.BufferedReader) -> Any:
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
        return _read_zip(file)
    if start[:1] == b"\x80":  # first byte of a pickle since protocol 2
        return _read_legacy(file)
    raise ConversionError(
        "not a file of torch.save, neither a zip nor a pickle: give the path of a .pt or .ckpt file"
    )


def _read_zip(file: io.BufferedReader) -> Any:
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ConversionError("a zip, but without the data.pkl of torch.save: it was made by something else")
    folder = pickles[0].removesuffix("data.pkl")

    def entry(name: str) -> memoryview:
        if folder + name not in entries:
            raise ConversionError(f"has no entry {folder + name}: it is damaged, download it again")
        return _entry(content, entries[folder + name])

    if f"{folder}byteorder" in entries and bytes(entry("byteorder")) != b"little":
        raise ConversionError("written on a big-endian machine, which is not supported")

    def fetch(key: str, dtype: np.dtype, numel: int) -> Flat:
        data = entry(f"data/{key}")
        if len(data) < numel * dtype.itemsize:
            raise ConversionError(
                f"storage {key} has {len(data)} bytes where {numel} values of {dtype} need {numel * dtype.itemsize}: "
                "it is damaged, download it again"
            )
        return np.frombuffer(data, dtype, numel)

    return RestrictedUnpickler(io.BytesIO(entry("data.pkl")), fetch).load()


def _entry(content: mmap.mmap, info: zipfile.ZipInfo) -> memoryview:
    """Returns the bytes of an uncompressed entry without a copy.

    Checksums are not verified: this would read the whole file, and torch.save can be set up not to write them.
    """
    if info.compress_type != zipfile.ZIP_STORED:
        raise ConversionError(
            f"entry {info.filename} is compressed, which torch.save never does: unpack and zip it with -0"
        )
    # The local header repeats the name and has an extra field, with which torch.save aligns the data.
    name_length, extra_length = struct.unpack_from("<HH", content, info.header_offset + 26)
    start = info.header_offset + 30 + name_length + extra_length
    if start + info.file_size > len(content):
        raise ConversionError(f"ends within entry {info.filename}: it is damaged, download it again")
    return memoryview(content)[start : start + info.file_size]


def _read_legacy(file: io.BufferedReader) -> Any:
    """Reads magic number, protocol, system, object and storage keys; then each storage, after its length."""
    size = os.fstat(file.fileno()).st_size
    if RestrictedUnpickler(file).load() != LEGACY_MAGIC:
        raise ConversionError("a pickle, but none of torch.save: it was made by something else")
    protocol, system = RestrictedUnpickler(file).load(), RestrictedUnpickler(file).load()
    if protocol != LEGACY_PROTOCOL or not system["little_endian"]:
        raise ConversionError(f"of protocol {protocol} by the system {system}, which is not supported")
    storages: dict[str, Flat] = {}

    def fetch(key: str, dtype: np.dtype, numel: int) -> Flat:
        """Returns memory that is filled below, because the bytes come after the pickle."""
        if numel * dtype.itemsize > size:
            raise ConversionError(f"ends within storage {key}: it is damaged, download it again")
        if key not in storages:
            storages[key] = np.empty(numel, dtype)
        return storages[key]

    result = RestrictedUnpickler(file, fetch).load()
    for key in RestrictedUnpickler(file).load():
        _fill(file, key, storages[key])
    return result


def _fill(file: io.BufferedReader, key: str, storage: Flat) -> None:
    (numel,) = struct.unpack("<q", file.read(8))
    if numel != storage.size:
        raise ConversionError(
            f"storage {key} has {numel} values where its pickle says {storage.size}: it is damaged, download it again"
        )
    if file.readinto(storage.view(np.uint8).data) != storage.nbytes:
        raise ConversionError(f"ends within storage {key}: it is damaged, download it again")
