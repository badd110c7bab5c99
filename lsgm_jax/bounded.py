"""Bounded reading of files that others made: no size that a file states is believed before it is checked.

Every function raises one line that names the file and member (`origin`), the value, and the remedy. What a file says of
its content is checked against the limits and against the bytes that are there, before anything is allocated.
"""

import contextlib
import csv
import dataclasses
import gzip
import io
import json
import lzma
import os
import pathlib
import reprlib
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from lsgm_jax.errors import DataError, UserError, in_one_line, printable

CHUNK = 2**20
SHOWN = 60  # characters of a value in a message
AGAIN = "get it again"  # the remedy for a file that was damaged after its maker wrote it
# What the standard library raises for files that are damaged, cut short, or encrypted.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    csv.Error,
    NotImplementedError,  # compression methods that zipfile does not have
    RuntimeError,  # encrypted zip files
    ValueError,  # negative offsets; UnicodeDecodeError included
    OverflowError,
)


@runtime_checkable
class Readable(Protocol):
    """An open file of bytes, or a decompressor."""

    def read(self, size: int = -1, /) -> bytes:
        """Returns the next `size` bytes, fewer at the end."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a file may need. All published data sets and checkpoints stay far below the defaults.

    Attributes:
        content: bytes in memory of one file or one member of an archive.
        archive: bytes on disk of a decompressed archive.
        ratio: decompressed bytes per compressed byte, above `slack` bytes; deflate reaches 1032 for zeros, images in
            published files at most 20.
        slack: decompressed bytes that are allowed whatever the ratio.
        members: files in an archive.
        nesting: containers within containers, of JSON and pickles.
        key: characters of a name or a key.
        text: bytes of a text that is parsed at once: JSON, a vocabulary, the captions of one file.
    """

    content: int = 2**33
    archive: int = 2**40
    ratio: int = 100
    slack: int = 2**26
    members: int = 2**24
    nesting: int = 32
    key: int = 4096
    text: int = 2**28

    def expanded(self, packed: int, most: int | None = None) -> int:
        """Returns the decompressed bytes that are allowed for `packed` bytes; `most` instead of `content` in all."""
        return min(self.content if most is None else most, max(self.slack, self.ratio * packed))


LIMITS = Limits()


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = SHOWN


def shown(value: object) -> str:
    """Returns a short form of a value from a file for a message: one line, without control characters."""
    value = value.item() if isinstance(value, np.generic) else value
    try:
        return printable(_SHORT.repr(value))
    except ValueError:  # an integer of thousands of digits
        return f"<{type(value).__name__}>"


def damaged(
    origin: object, what: object, error: type[UserError] = DataError, remedy: str = AGAIN
) -> UserError:
    """Returns the error for a file that is not as it was written."""
    # MemoryError and EOFError may say nothing.
    reason = in_one_line(str(what))[:200] or type(what).__name__
    return error(f"{origin} is damaged or incomplete ({reason}): {remedy}")


@contextlib.contextmanager
def reading(origin: object, error: type[UserError] = DataError, remedy: str = AGAIN) -> Iterator[None]:
    """Converts the errors that libraries raise for damaged and unreadable files to one line.

    Raises:
        UserError: of the type `error`, with the name `origin`.
    """
    try:
        yield
    except UserError:  # some are a ValueError as well
        raise
    except (*DAMAGE, MemoryError) as found:
        raise damaged(origin, found, error, remedy) from found
    except OSError as found:
        raise error(f"cannot read {origin}: {found.strerror or found}") from found


def check_size(
    needed: int, most: int, origin: object, *, what: str = "bytes", error: type[UserError] = DataError
) -> int:
    """Returns `needed`, a size that a file states, if it is no more than `most`.

    Raises:
        UserError: of the type `error`, otherwise.
    """
    if not 0 <= needed <= most:
        raise error(
            f"{origin} says that it has {shown(needed)} {what}, and at most {most} are taken: it is damaged, or made "
            f"to fill the memory: {AGAIN} from its publisher"
        )
    return needed


def read_all(
    stream: Readable, most: int, origin: object, *, what: str = "bytes", error: type[UserError] = DataError
) -> bytes:
    """Returns everything that a stream has left; a decompressor is stopped after `most` bytes.

    Raises:
        UserError: of the type `error`, if there are more, or the stream is damaged.
    """
    content = bytearray()
    with reading(origin, error):
        while chunk := stream.read(min(CHUNK, most + 1 - len(content))):
            content += chunk
            if len(content) > most:
                raise error(
                    f"{origin} expands to more than {most} {what}: it is damaged, or made to fill the memory: {AGAIN} "
                    "from its publisher"
                )
    return bytes(content)


def read_exactly(
    stream: Readable, count: int, origin: object, *, most: int, error: type[UserError] = DataError
) -> UInt8[np.ndarray, "count"]:
    """Returns the next `count` bytes of a stream; pages of memory are only touched as bytes arrive.

    Raises:
        UserError: of the type `error`, if `count` is more than `most`, or the stream ends before.
    """
    values = np.empty(check_size(count, most, origin, error=error), np.uint8)
    with reading(origin, error):
        for start in range(0, count, CHUNK):
            part = values.data[start : start + CHUNK]
            while part:
                if not (chunk := stream.read(len(part))):
                    raise EOFError(f"it ends before its {count} bytes")
                part[: len(chunk)] = chunk
                part = part[len(chunk) :]
    return values


def check_ended(stream: Readable, origin: object, *, error: type[UserError] = DataError) -> None:
    """Checks that a stream has ended, which also verifies the checksum of a compressed one.

    Raises:
        UserError: of the type `error`, if bytes follow.
    """
    with reading(origin, error):
        if stream.read(1):
            raise damaged(origin, "more bytes follow than its header says", error)


def gunzip(packed: bytes, origin: object, *, limits: Limits = LIMITS) -> bytes:
    """Returns the decompressed content of a gzip file.

    Raises:
        DataError: if it is damaged, or expands beyond `limits`.
    """
    with gzip.open(io.BytesIO(packed)) as stream:
        return read_all(stream, limits.expanded(len(packed)), origin)


def read_file(
    path: pathlib.Path, *, most: int = LIMITS.content, error: type[UserError] = DataError, remedy: str = AGAIN
) -> bytes:
    """Returns the content of a regular file of at most `most` bytes.

    Raises:
        UserError: of the type `error`, if it cannot be read, is no regular file, or is larger.
    """
    if path.exists() and not path.is_file():
        raise error(f"{path} is a folder or a device: give a file")
    with reading(path, error, remedy), path.open("rb") as file:
        check_size(os.fstat(file.fileno()).st_size, most, path, error=error)
        return read_all(file, most, path, error=error)


def read_text(
    path: pathlib.Path,
    *,
    limits: Limits = LIMITS,
    error: type[UserError] = DataError,
    remedy: str = "save it as UTF-8",
) -> str:
    """Returns the content of a text file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: of the type `error`, if it cannot be read, is longer than `limits.text`, or is no text.
    """
    return decoded(read_file(path, most=limits.text, error=error), path, error=error, remedy=remedy)


def decoded(
    content: bytes, origin: object, *, error: type[UserError] = DataError, remedy: str = "save it as UTF-8"
) -> str:
    """Returns bytes of UTF-8 as text.

    Raises:
        UserError: of the type `error`, for anything else.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as found:
        raise error(f"{origin} is no text in UTF-8 ({found}): {remedy}") from found


def parse_json(
    text: str,
    origin: object,
    *,
    limits: Limits = LIMITS,
    error: type[UserError] = DataError,
    remedy: str = AGAIN,
) -> Any:
    """Returns the value of a JSON text; an object with two equal keys is refused, for one would be lost.

    Raises:
        UserError: of the type `error`, if it is no JSON, or nested deeper than `limits.nesting`.
    """
    check_size(len(text), limits.text, origin, what="characters", error=error)
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as found:  # JSONDecodeError, and integers of thousands of digits
        raise error(f"{origin} is no JSON ({in_one_line(str(found))}): {remedy}") from found
    if is_deeper(value, limits.nesting):
        raise error(f"{origin} is nested more than {limits.nesting} deep: {remedy}")
    return value


def is_deeper(value: Any, most: int) -> bool:
    """Returns whether containers lie within more than `most` containers, level by level."""
    level = [value]
    for _ in range(most + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return False
        level = [x for item in containers for x in (item.values() if isinstance(item, dict) else item)]
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return found
