"""One interface to folders, zip files and tar files: names and bytes."""

import pathlib
import re
import stat
import zipfile
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lsgm_jax.bounded import LIMITS, check_size, reading
from lsgm_jax.data.names import Skipped, components, natural
from lsgm_jax.data.readers.listing import Listing
from lsgm_jax.data.readers.tars import Tar, is_tar
from lsgm_jax.data.readers.trees import Folder
from lsgm_jax.errors import DataError, printable

NOT_READ = (".rar", ".7z", ".zst", ".lz4", ".lz", ".cab", ".iso", ".dmg", ".lmdb", ".h5", ".hdf5", ".parquet")
LINK_BYTES = 4096  # of the target of a link


@runtime_checkable
class Archive(Protocol):
    """A collection of named files. Names have their normal form, with `/` between folders."""

    @property
    def path(self) -> pathlib.Path:
        """The path of the folder or archive."""
        ...

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What is no regular file."""
        ...

    def names(self) -> list[str]:
        """Returns the names of all files."""
        ...

    def read(self, name: str, most: int = LIMITS.content) -> bytes:
        """Returns the content of a file.

        Raises:
            DataError: if it is damaged, or longer than `most`; a stated length is checked before anything is read.
        """
        ...

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """Returns the files on disk that contain these names."""
        ...


def open_archive(path: pathlib.Path) -> Archive:
    """Opens a folder, a zip file or a tar file; any other file is an archive with that one file.

    Raises:
        DataError: if `path` does not exist, is damaged, or is an archive of another kind.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise DataError(f"--source={printable(str(path))}: there is no such file or folder")
    if not path.is_file():
        raise DataError(f"--source={printable(str(path))} is a device: give a file or a folder")
    if is_tar(path):
        return Tar(path)
    if path.suffix.lower() == ".zip":
        return Zip(path)
    if path.suffix.lower() in NOT_READ:
        raise DataError(f"{path}: {path.suffix} files are not read: unpack it and give the folder")
    return Folder(path.parent, [path.name])


class Zip:
    """A zip file. Links to members are these members.

    Raises:
        DataError: if it is damaged, expands beyond `LIMITS`, or has links that lead out of it or nowhere.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self._listing = path, Listing(path)
        with reading(path):
            self._file = zipfile.ZipFile(path)
        infos = self._file.infolist()
        expanded = sum(info.file_size for info in infos)
        check_size(expanded, LIMITS.expanded(path.stat().st_size, LIMITS.archive), path)
        self._listing.follow(dict(filter(None, map(self._added, infos))))

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What is no regular file."""
        return self._listing.skipped

    def names(self) -> list[str]:
        """Returns the names of all members that are files."""
        return list(self._listing.places)

    def read(self, name: str, most: int = LIMITS.content) -> bytes:
        """Returns the content of a member."""
        return self._content(self._listing.places[name], most)

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """Returns the zip file."""
        return [self.path]

    def _added(self, info: zipfile.ZipInfo) -> tuple[str, str] | None:
        """Lists a member; returns the name and target of a link."""
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 in archives of other systems than Unix
        if stat.S_ISLNK(kind):
            target = self._content(info, LINK_BYTES).decode("utf-8", "surrogateescape")
            if target.startswith("/"):
                raise self._listing.refused(components(info.filename), "out of the archive")
            return info.filename, target
        if kind and not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            self._listing.skip(info.filename, "no regular file")
        elif not info.filename.endswith(("/", "\\")):
            self._listing.add(info.filename, info)
        return None

    def _content(self, info: zipfile.ZipInfo, most: int) -> bytes:
        origin = f"{printable(info.filename)} in {self.path}"
        check_size(info.file_size, min(most, LIMITS.expanded(info.compress_size)), origin)
        with reading(origin):
            return self._file.read(info)


def matching(archive: Archive, pattern: str) -> list[str]:
    """Returns the names whose last component matches `pattern`, in natural order (2 before 10)."""
    return sorted((n for n in archive.names() if re.fullmatch(pattern, n.rpartition("/")[2])), key=natural)
