"""Tar files as archives."""

import bz2
import gzip
import io
import lzma
import pathlib
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from lsgm_jax.bounded import CHUNK, LIMITS, check_size, damaged, read_exactly, reading
from lsgm_jax.data.names import Skipped, components
from lsgm_jax.data.readers.listing import Listing
from lsgm_jax.errors import DataError, printable

OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    **dict.fromkeys((".tar.gz", ".tgz"), gzip.open),
    **dict.fromkeys((".tar.bz2", ".tbz2", ".tbz"), bz2.open),
    **dict.fromkeys((".tar.xz", ".txz", ".tar.lzma"), lzma.open),
}
HEADER_BYTES = 2**20  # of the names and attributes of one member


class Content(NamedTuple):
    """Where the content of a member is in the tar file."""

    start: int
    size: int


class Tar:
    """A tar file. A compressed one is decompressed to a temporary file first, for random access to its members.

    Links to members are these members.

    Raises:
        DataError: if it is damaged, expands beyond `LIMITS`, or has links that lead out of it or nowhere.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self._listing = path, Listing(path)
        opener = next(
            (opener for suffix, opener in OPENERS.items() if path.name.lower().endswith(suffix)), None
        )
        with reading(path):
            self._file = path.open("rb") if opener is None else _decompressed(path, opener)
            self._list()

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What is no regular file."""
        return self._listing.skipped

    def names(self) -> list[str]:
        """Returns the names of all members that are files."""
        return list(self._listing.places)

    def read(self, name: str, most: int = LIMITS.content) -> bytes:
        """Returns the content of a member."""
        place, origin = self._listing.places[name], f"{name} in {self.path}"
        check_size(place.size, most, origin)
        if isinstance(place, tarfile.TarInfo):
            with reading(origin), tarfile.open(fileobj=_rewound(self._file)) as file:
                stream = file.extractfile(place)
                assert stream is not None  # it is no link
                return stream.read()
        self._file.seek(place.start)
        return read_exactly(self._file, place.size, origin, most=most).tobytes()

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """Returns the tar file."""
        return [self.path]

    def _list(self) -> None:
        """Lists the members in one pass, without the memory that `getmembers` takes for each."""
        links, before, length = {}, -1, self._file.seek(0, io.SEEK_END)
        self._file.seek(0)
        headers: Any = _Headers(self._file, self.path)
        with tarfile.open(fileobj=headers, mode="r:") as file:
            while (member := file.next()) is not None:
                if not before < member.offset_data or member.size < 0:
                    raise damaged(self.path, f"the member {member.name} has a negative size")
                if member.isreg() and not member.issparse() and member.size > length - member.offset_data:
                    raise damaged(self.path, f"it ends within {printable(member.name)}")
                before = member.offset_data
                self._add(member, links)
                file.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
            self._check_end(file.offset)
        self._listing.follow(links)

    def _check_end(self, offset: int) -> None:
        """Refuses a file without the zeros at its end: tarfile takes a damaged header for the end."""
        self._file.seek(offset)
        if self._file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise damaged(self.path, f"no member and no end at byte {offset}")
        while chunk := self._file.read(CHUNK):
            if chunk.count(0) < len(chunk):
                raise damaged(self.path, "more bytes follow its end")

    def _add(self, member: tarfile.TarInfo, links: dict[str, str]) -> None:
        if member.islnk():
            links[member.name] = "/" + member.linkname
        elif member.issym() and member.linkname.startswith("/"):
            raise self._listing.refused(components(member.name), "out of the archive")
        elif member.issym():
            links[member.name] = member.linkname
        elif member.issparse():
            self._listing.add(member.name, member)
        elif member.isfile():
            self._listing.add(member.name, Content(member.offset_data, member.size))
        elif not member.isdir():
            self._listing.skip(member.name, "no regular file")


def is_tar(path: pathlib.Path) -> bool:
    """Returns whether a file is named like a tar file, compressed or not."""
    return path.name.lower().endswith((".tar", *OPENERS))


class _Headers:
    """A file of which only headers are read: a larger read is refused, whatever size a member says that it has."""

    def __init__(self, file: BinaryIO, origin: object):
        self._file, self._origin = file, origin
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        check_size(size, HEADER_BYTES, self._origin, what="bytes of names")
        return self._file.read(size)


def _rewound(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _decompressed(path: pathlib.Path, opener: Callable[[BinaryIO], Any]) -> BinaryIO:
    """Returns the decompressed content as a temporary file, which is deleted when it is closed."""
    plain, size = tempfile.TemporaryFile(), path.stat().st_size  # noqa: SIM115
    most = LIMITS.expanded(size, LIMITS.archive)
    with (
        path.open("rb") as raw,
        opener(raw) as packed,
        tqdm(total=size, unit="B", unit_scale=True, desc=f"reading {path.name}", delay=1, leave=False) as bar,
    ):
        while chunk := packed.read(CHUNK):
            check_size(plain.tell() + len(chunk), most, path, what="or more bytes in it")
            _write(plain, chunk, path)
            bar.update(raw.tell() - bar.n)
    plain.seek(0)
    return plain


def _write(plain: BinaryIO, chunk: bytes, path: pathlib.Path) -> None:
    try:
        plain.write(chunk)
    except OSError as error:
        raise DataError(
            f"{path} cannot be decompressed in {tempfile.gettempdir()} ({error.strerror}): set TMPDIR to a folder with "
            "more space, or unpack it and give the folder"
        ) from error
