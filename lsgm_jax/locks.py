"""A lock on a folder: while one process writes to it, others that would are refused at once."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from lsgm_jax.errors import LockedError
from lsgm_jax.files import is_first

NAME = ".lock"
# What flock fails with on file systems that do not have it.
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
SECONDS_TO_SETTLE = 0.2  # without flock: time in which processes that claim the same folder see each other


@dataclasses.dataclass(frozen=True)
class Holder:
    """The content of the file: who holds the lock.

    Attributes:
        doing: what is being done to the folder: "trained", "prepared".
        process: its number on its host.
        host: its name.
    """

    doing: str
    process: int
    host: str

    def may_live(self, path: pathlib.Path) -> bool:
        """Returns whether the process that wrote the file `path` may still run; that of another host may."""
        if self.host != socket.gethostname():
            return True
        if self.process == os.getpid():
            return path.absolute() in _HELD  # otherwise a process of the same number, before a reboot
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # of another user
        return True


_HELD: dict[pathlib.Path, int] = {}  # the files that this process has locked, and their descriptors


@dataclasses.dataclass(frozen=True)
class Lock:
    """A lock that is held.

    Attributes:
        folder: the locked folder.
        descriptor: of the file; None in processes other than the first, which do not lock.
    """

    folder: pathlib.Path
    descriptor: int | None

    def check(self) -> None:
        """Does nothing as long as the folder is where it was.

        Raises:
            LockedError: if it has been moved or deleted; whatever is written now would go to a folder without a past.
        """
        if self.descriptor is not None and not _is_at(self.descriptor, self.folder / NAME):
            raise LockedError(
                f"{self.folder} has been moved or deleted: put it back, and the same command goes on"
            )


@contextlib.contextmanager
def locked(folder: pathlib.Path, doing: str, remedy: str) -> Iterator[Lock]:
    """Holds the lock of a folder, which is made if it is missing, in this context.

    The kernel frees the lock of a process that ends, however it ends. File systems without `flock` have the file alone:
    its process is looked up, if it is of this host. Of several processes that run as one, the first one locks.

    Args:
        folder: the folder. If it is new and nothing is written to it, it is removed at the end.
        doing: what is done to it, for the message to others: "trained".
        remedy: what others can do instead of waiting: "choose another --workdir".

    Raises:
        LockedError: if another process holds the lock, or the folder cannot be written.
    """
    if not is_first():
        yield Lock(folder, None)
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    holder = Holder(doing, os.getpid(), socket.gethostname())
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = _acquire(folder, holder, remedy)
        except OSError as error:
            raise LockedError(f"cannot write to {folder} ({error.strerror}): {remedy}") from error
        try:
            yield Lock(folder, descriptor)
        finally:
            _release(folder, descriptor)
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Waits for other processes that are in this context for the same folder; for what takes milliseconds.

    File systems without `flock` do not wait.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _acquire(folder: pathlib.Path, holder: Holder, remedy: str) -> int:
    """Returns the descriptor of the file, locked, with the holder in it."""
    path = folder / NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _has_flock(descriptor):
                _claim(folder, descriptor, holder, remedy)
            if _is_at(descriptor, path):  # or the holder before has just removed the file
                _write(descriptor, holder)
                _HELD[path.absolute()] = descriptor
                return descriptor
        except BlockingIOError:
            raise LockedError(_refusal(folder, _read_soon(descriptor), remedy)) from None
        finally:
            if _HELD.get(path.absolute()) != descriptor:
                os.close(descriptor)


def _has_flock(descriptor: int) -> bool:
    """Takes the lock of the kernel, and returns False on a file system that has none.

    Raises:
        BlockingIOError: if another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def _claim(folder: pathlib.Path, descriptor: int, holder: Holder, remedy: str) -> None:
    """Takes the lock without the kernel: of several processes that write to the file, the last one gets it."""
    before = _read(descriptor)
    if before is not None and before.may_live(folder / NAME):
        free = f"{remedy}, or delete {folder / NAME} if that process has ended"
        raise LockedError(_refusal(folder, before, free))
    _write(descriptor, holder)
    time.sleep(SECONDS_TO_SETTLE)
    if (now := _read(descriptor)) != holder:
        raise LockedError(_refusal(folder, now, remedy))


def _release(folder: pathlib.Path, descriptor: int) -> None:
    path = folder / NAME
    _HELD.pop(path.absolute(), None)
    with contextlib.suppress(OSError):  # the folder may be gone
        if _is_at(descriptor, path):
            path.unlink()
    os.close(descriptor)


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
    """Returns whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _write(descriptor: int, holder: Holder) -> None:
    text = json.dumps(dataclasses.asdict(holder)).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text + b"\n", 0)


def _read(descriptor: int) -> Holder | None:
    """Returns who holds the lock; None if the file does not say."""
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _read_soon(descriptor: int) -> Holder | None:
    """As `_read`, of a process that has just taken the lock and is about to say so."""
    for _ in range(10):
        if (holder := _read(descriptor)) is not None:
            return holder
        time.sleep(SECONDS_TO_SETTLE / 10)
    return None


def _refusal(folder: pathlib.Path, holder: Holder | None, remedy: str) -> str:
    if holder is None:
        return f"{folder} is in use by another process: wait until it ends, or {remedy}"
    who = f"process {holder.process} on {holder.host}"
    return f"{folder} is being {holder.doing} by {who}: wait until it ends, or {remedy}"
