"""Atomic writing of files, by the first of several processes only."""

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator

from lsgm_jax.jax_internals import process_id

HOURS_OF_LEFTOVERS = 1.0  # after which a temporary file belongs to a process that was killed


def is_first() -> bool:
    """Returns whether this is the only process or the first of several, the one that prints and writes files.

    Unlike `jax.process_index()`, it starts no backend, so it may be called before `jax.distributed.initialize`.
    """
    return process_id() == 0


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, and moves that file to `path` at the end in one step.

    A reader never sees a file that is half written, not even after a power cut. A temporary file does not stay if
    writing fails. Files of other processes than the first are discarded.

    Raises:
        OSError: names `path` if the file cannot be written.
    """
    if not is_first():
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder) / path.name
        return
    # Commands that write the same file at the same time have temporary files of their own.
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path, instead_of=partial):
            yield partial
            _sync(partial)
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        _remove_leftovers(path)
    with contextlib.suppress(OSError):  # some file systems do not sync folders
        _sync(path.parent)


@contextlib.contextmanager
def naming(path: pathlib.Path, *, instead_of: pathlib.Path | None = None) -> Iterator[None]:
    """Names `path` in errors of the operating system that name no file, such as those of a full disk.

    Args:
        path: what is being written.
        instead_of: a temporary name of it.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(instead_of):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Renames a file that is damaged and still may be of use; returns its new path."""
    target = path.with_name(f"{path.name}.damaged")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.damaged{number}")
    if is_first():
        path.rename(target)
    return target


def _sync(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(path: pathlib.Path) -> None:
    """Deletes what killed processes were writing."""
    with contextlib.suppress(OSError):  # another process deletes them too
        for leftover in path.parent.glob(f"{path.name}.*.tmp"):
            if time.time() - leftover.stat().st_mtime > 3600.0 * HOURS_OF_LEFTOVERS:
                leftover.unlink()
