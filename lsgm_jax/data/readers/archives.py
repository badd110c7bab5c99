"""One interface to folders, zip files and tar files: names and bytes."""

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
    RuntimeError,  # raised for encrypted zip files
)


@runtime_checkable
class Archive(Protocol):
    """A collection of named files."""

    @property
    def path(self) -> pathlib.Path:
        """The path of the folder or archive."""
        ...

    def names(self) -> list[str]:
        """Returns the names of all files, with `/` between folders."""
        ...

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        ...

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """Returns the files on disk that contain these names."""
        ...


def open_archive(path: pathlib.Path) -> Archive:
    """Opens a folder, a zip file or a tar file; any other file is an archive with that one file.

    Raises:
        DataError: if `path` does not exist, or is damaged.
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
    """Converts the errors that libraries raise for damaged files to one line.

    Raises:
        DataError: with the name `origin`.
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
        """Returns the sorted names, relative to the folder."""
        if self._names is None:
            found = (p for p in self.path.rglob("*") if p.is_file())
            self._names = sorted(p.relative_to(self.path).as_posix() for p in found)
        return self._names

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {self.path / name}: {error.strerror or error}") from error

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """Returns their paths."""
        return [self.path / name for name in names]


class Zip:
    """A zip file."""

    def __init__(self, path: pathlib.Path):
        self.path, self._file = path, zipfile.ZipFile(path)

    def names(self) -> list[str]:
        """Returns the names of all members but folders."""
        return [info.filename for info in self._file.infolist() if not info.is_dir()]

    def read(self, name: str) -> bytes:
        """Returns the content of a member."""
        with reading(f"{name} in {self.path}"):
            return self._file.read(name)

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """Returns the zip file."""
        return [self.path]


class Tar:
    """A tar file. A compressed one is decompressed to a temporary file first, for random access to its members."""

    def __init__(self, path: pathlib.Path):
        plain = path.open("rb") if path.suffix == ".tar" else _decompressed(path)
        self.path, self._file = path, tarfile.open(fileobj=plain)  # noqa: SIM115  # open until the command ends
        self._members = {member.name: member for member in self._file.getmembers() if member.isfile()}

    def names(self) -> list[str]:
        """Returns the names of all members that are files."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """Returns the content of a member."""
        with reading(f"{name} in {self.path}"):
            file = self._file.extractfile(self._members[name])
            assert file is not None  # `_members` has files only
            return file.read()

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """Returns the tar file."""
        return [self.path]


def _decompressed(path: pathlib.Path) -> BinaryIO:
    plain, size = tempfile.TemporaryFile(), path.stat().st_size  # noqa: SIM115  # deleted when it is closed
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
    """Returns the names whose last component matches `pattern`, in natural order (2 before 10)."""
    return sorted((n for n in archive.names() if re.fullmatch(pattern, n.rpartition("/")[2])), key=by_number)


def by_number(name: str) -> list[tuple[int, str]]:
    """Returns a sort key for natural order, 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
