"""Folders, zip files and tar files, as names with their bytes."""

import contextlib
import gzip
import pathlib
import pickle
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol, runtime_checkable

from tqdm import tqdm

from lsgm_jax.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
CHUNK = 2**22
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    pickle.UnpicklingError,
    RuntimeError,  # of zip files that are encrypted
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
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {self.path / name}: {error.strerror or error}") from error

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
    """A tar file; a compressed one is decompressed to a temporary file, for its members are not read in their order."""

    def __init__(self, path: pathlib.Path):
        plain = path.open("rb") if path.suffix == ".tar" else _decompressed(path)
        self.path, self._file = path, tarfile.open(fileobj=plain)  # noqa: SIM115  # as long as the command runs
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


def _decompressed(path: pathlib.Path) -> BinaryIO:
    plain, size = tempfile.TemporaryFile(), path.stat().st_size  # noqa: SIM115  # it is gone once it is closed
    with (
        path.open("rb") as raw,
        gzip.open(raw) as packed,
        tqdm(total=size, unit="B", unit_scale=True, desc=f"reading {path.name}", delay=1, leave=False) as bar,
    ):
        while chunk := packed.read(CHUNK):
            plain.write(chunk)
            bar.update(raw.tell() - bar.n)
    plain.seek(0)
    return plain


def matching(archive: Archive, pattern: str) -> list[str]:
    """Names whose last part matches all of `pattern`, numbers in them in the order of numbers."""
    return sorted((n for n in archive.names() if re.fullmatch(pattern, n.rpartition("/")[2])), key=by_number)


def by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
