"""Folders, zip files and tar files, as names with their bytes. Nothing is unpacked to disk."""

import contextlib
import gzip
import pathlib
import pickle
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from lsgm_jax.data.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    pickle.UnpicklingError,
)


@runtime_checkable
class Archive(Protocol):
    """Named files."""

    @property
    def path(self) -> pathlib.Path:
        """Where it is."""
        ...

    def names(self) -> list[str]:
        """Of all files, with `/` between folders."""
        ...

    def read(self, name: str) -> bytes:
        """What a file holds."""
        ...

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """The files on disk in which these are."""
        ...


def open_archive(path: pathlib.Path) -> Archive:
    """A folder, a zip or tar file, or any other file as an archive of itself alone.

    Raises:
        DataError: if there is none, or it is damaged.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise DataError(f"--source={path}: there is no such file or folder")
    with reading(path):
        if path.name.endswith(TAR_SUFFIXES):
            return Tar(path)
        if path.suffix == ".zip":
            return Zip(path)
    return Folder(path.parent, [path.name])


@contextlib.contextmanager
def reading(origin: object) -> Iterator[None]:
    """Turns what the libraries say of damaged files into one line.

    Raises:
        DataError: naming `origin`.
    """
    try:
        yield
    except DAMAGE as error:
        raise DataError(
            f"{origin} is damaged or incomplete ({error or type(error).__name__}): get it again"
        ) from error


class Folder:
    """The files of a folder and its sub-folders, or some of them."""

    def __init__(self, path: pathlib.Path, names: list[str] | None = None):
        self.path, self._names = path, names

    def names(self) -> list[str]:
        """Relative to the folder, sorted."""
        if self._names is None:
            found = (p for p in self.path.rglob("*") if p.is_file())
            self._names = sorted(p.relative_to(self.path).as_posix() for p in found)
        return self._names

    def read(self, name: str) -> bytes:
        """What a file holds."""
        return (self.path / name).read_bytes()

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """Themselves."""
        return [self.path / name for name in names]


class Zip:
    """A zip file."""

    def __init__(self, path: pathlib.Path):
        self.path, self._file = path, zipfile.ZipFile(path)

    def names(self) -> list[str]:
        """Of what are no folders."""
        return [info.filename for info in self._file.infolist() if not info.is_dir()]

    def read(self, name: str) -> bytes:
        """What a member holds."""
        with reading(f"{name} in {self.path}"):
            return self._file.read(name)

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """The zip file."""
        return [self.path]


class Tar:
    """A tar file, compressed or not."""

    def __init__(self, path: pathlib.Path):
        self.path, self._file = path, tarfile.open(path)  # noqa: SIM115  # as long as the command runs
        self._members = {member.name: member for member in self._file.getmembers() if member.isfile()}

    def names(self) -> list[str]:
        """Of what are files."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """What a member holds."""
        with reading(f"{name} in {self.path}"):
            file = self._file.extractfile(self._members[name])
            assert file is not None  # it is a file
            return file.read()

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """The tar file."""
        return [self.path]


def matching(archive: Archive, pattern: str) -> list[str]:
    """Names whose last part matches all of `pattern`, numbers in them in the order of numbers."""
    return sorted((n for n in archive.names() if re.fullmatch(pattern, n.rpartition("/")[2])), key=by_number)


def by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
