"""Reads files of `torch.save` to numpy arrays, without PyTorch and without running code from the file.

Two layouts exist. Since PyTorch 1.6 a file is an uncompressed zip with one pickle, and an entry for each storage (the
flat memory that tensors are views of). Before, it was a sequence of five pickles followed by the storages.
`restricted.py` has the names that a pickle may use.
"""

import functools
import io
import mmap
import struct
import zipfile
from typing import Any

import numpy as np

from lsgm_jax.errors import ConversionError, first_line
from lsgm_jax.interop.restricted import Flat, load_torch

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
CHUNK = 2**20


def read_zip(file: io.BufferedReader) -> Any:
    """Returns the content of a file in the layout since 1.6; its arrays are memory-mapped.

    Raises:
        ConversionError: if the file is damaged; other errors, too, if it is no zip file or no pickle.
    """
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    archive = zipfile.ZipFile(file)
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ConversionError("a zip, but without the data.pkl of torch.save: it was made by something else")
    if sum(info.file_size for info in entries.values()) > len(content):
        raise ConversionError("its entries are larger than the file: it is damaged, download it again")
    folder = pickles[0].removesuffix("data.pkl")

    @functools.cache
    def entry(name: str) -> memoryview:
        if folder + name not in entries:
            raise ConversionError(f"has no entry {folder + name}: it is damaged, download it again")
        _check(archive, entries[folder + name])
        return _entry(content, entries[folder + name])

    if f"{folder}byteorder" in entries and bytes(entry("byteorder")) != b"little":
        raise ConversionError("written on a big-endian machine, which is not supported")

    def fetch(key: str, dtype: np.dtype, numel: int) -> Flat:
        data = entry(f"data/{key}")
        if len(data) // dtype.itemsize != numel:
            raise ConversionError(
                f"storage {key} has {len(data)} bytes where {numel} values of {dtype} need {numel * dtype.itemsize}: "
                "it is damaged, download it again"
            )
        return np.frombuffer(data, dtype, numel)

    return load_torch(io.BytesIO(entry("data.pkl")), fetch)


def _check(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Raises `ConversionError` unless an entry is uncompressed and has the checksum that the file states."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ConversionError(
            f"entry {info.filename} is compressed, which torch.save never does: unpack and zip it with -0"
        )
    try:
        with archive.open(info) as stream:
            while stream.read(CHUNK):
                pass
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise ConversionError(
            f"entry {info.filename} is not what was saved ({first_line(error)}): download the file again, or, if it "
            "was saved with set_crc32_options(False), save it again without"
        ) from error


def _entry(content: mmap.mmap, info: zipfile.ZipInfo) -> memoryview:
    """Returns the bytes of an uncompressed entry without a copy."""
    # The local header repeats the name and has an extra field, with which torch.save aligns the data.
    name_length, extra_length = struct.unpack_from("<HH", content, info.header_offset + 26)
    start = info.header_offset + 30 + name_length + extra_length
    if start + info.file_size > len(content):
        raise ConversionError(f"ends within entry {info.filename}: it is damaged, download it again")
    return memoryview(content)[start : start + info.file_size]


def read_legacy(file: io.BufferedReader) -> Any:
    """Returns the content of a file in the older layout; its arrays are in memory once.

    These are magic number, protocol, system, object and storage keys; then each storage, after its length.

    Raises:
        ConversionError: if the file is damaged; other errors, too, if it is no pickle.
    """
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if load_torch(content) != LEGACY_MAGIC:
        raise ConversionError("a pickle, but none of torch.save: it was made by something else")
    if load_torch(content) != LEGACY_PROTOCOL:
        raise ConversionError("of another protocol than torch.save's, which is not supported")
    system = load_torch(content)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ConversionError("written on a big-endian machine, which is not supported")
    storages = _LegacyStorages(content)
    result, keys = load_torch(content, storages.fetch), load_torch(content)
    storages.fill(keys)
    return result


class _LegacyStorages:
    """The storages of a file in the older layout, whose bytes come after the pickle that refers to them."""

    def __init__(self, content: mmap.mmap):
        self._content, self._storages, self._size = content, dict[str, Flat](), 0

    def fetch(self, key: str, dtype: np.dtype, numel: int) -> Flat:
        """Returns memory, which `fill` fills."""
        if key not in self._storages:
            self._size += numel * dtype.itemsize
            if self._size > len(self._content):
                raise ConversionError(f"ends within storage {key}: it is damaged, download it again")
            self._storages[key] = np.empty(numel, dtype)
        values = self._storages[key]
        if (values.size, values.dtype) != (numel, dtype):
            raise ConversionError(f"storage {key} has two sizes or dtypes: it is damaged, download it again")
        return values

    def fill(self, keys: Any) -> None:
        """Reads the storages in the order of `keys`, each after its length."""
        if not isinstance(keys, list) or sorted(keys) != sorted(self._storages):
            raise ConversionError(
                "its list of storages is not that of its tensors: it is damaged, download it again"
            )
        for key in keys:
            self._fill(key, self._storages[key])

    def _fill(self, key: str, values: Flat) -> None:
        (numel,) = struct.unpack("<q", self._content.read(8))
        if numel != values.size:
            raise ConversionError(
                f"storage {key} has {numel} values where its pickle says {values.size}: "
                "it is damaged, download it again"
            )
        start = self._content.tell()
        if start + values.nbytes > len(self._content):
            raise ConversionError(f"ends within storage {key}: it is damaged, download it again")
        values.view(np.uint8)[:] = np.frombuffer(self._content, np.uint8, values.nbytes, start)
        self._content.seek(start + values.nbytes)
