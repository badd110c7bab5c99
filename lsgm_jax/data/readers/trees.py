"""A folder as an archive: its files, and those of the folders and links in it."""

import os
import pathlib
import stat
from collections.abc import Iterator, Sequence

from lsgm_jax.bounded import LIMITS, read_file
from lsgm_jax.data.names import Skipped, components, unseen
from lsgm_jax.data.readers.listing import Listing
from lsgm_jax.errors import DataError, printable

Ancestors = frozenset[tuple[int, int]]  # device and inode of the folders around a file


class Folder:
    """The files of a folder and its sub-folders, or some of them.

    Links are followed, also out of the folder. FIFOs, sockets and devices are skipped: reading one would block.

    Raises:
        DataError: if a sub-folder cannot be read, or a link leads nowhere or into a circle.
    """

    def __init__(self, path: pathlib.Path, names: list[str] | None = None):
        self.path, self._listing = path, Listing(path)
        if names is None:
            self._walk(path)
        else:
            for name in names:
                self._listing.add(name, path / name)

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What is no regular file."""
        return self._listing.skipped

    def names(self) -> list[str]:
        """Returns the sorted names, relative to the folder."""
        return sorted(self._listing.places)

    def read(self, name: str, most: int = LIMITS.content) -> bytes:
        """Returns the content of a file."""
        return read_file(self._listing.places[name], most=most)

    def files(self, names: Sequence[str]) -> list[pathlib.Path]:
        """Returns their paths."""
        return [self._listing.places[name] for name in names]

    def _walk(self, root: pathlib.Path) -> None:
        """Lists the files, folder by folder: a tree may be deeper than Python's stack."""
        waiting: list[tuple[str, Ancestors]] = [("", frozenset())]
        while waiting:
            folder, ancestors = waiting.pop()
            here = _identity(os.stat(root / folder))
            for entry in _entries(root / folder):
                name = os.path.join(folder, entry.name)
                if reason := unseen(components(entry.name)):
                    self._listing.skip(name, reason)
                    continue
                status = self._status(entry, name)
                if stat.S_ISREG(status.st_mode):
                    self._listing.add(name, root / name)
                elif not stat.S_ISDIR(status.st_mode):
                    self._listing.skip(name, "no regular file")
                elif _identity(status) in ancestors | {here}:
                    raise self._listing.refused(components(name), "to a folder that holds it")
                else:
                    waiting.append((name, ancestors | {here}))

    def _status(self, entry: os.DirEntry, name: str) -> os.stat_result:
        try:
            return entry.stat()
        except OSError as error:
            if not entry.is_symlink():
                raise DataError(f"cannot read {printable(entry.path)}: {error.strerror}") from error
            target = printable(os.readlink(entry.path))
            whereto = f"to {target}, which cannot be opened ({error.strerror})"
            raise self._listing.refused(components(name), whereto) from error


def _entries(folder: pathlib.Path) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {printable(str(folder))}: {error.strerror}") from error


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
