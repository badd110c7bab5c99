"""Names of files in folders and archives: their normal form, their order, and which are images."""

import collections
import hashlib
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lsgm_jax.errors import printable

IMAGE_SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "bmp", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif", "npy"),
    )
)
# What operating systems and file servers add to folders and archives, beside hidden files.
SYSTEM = frozenset(
    (
        *("__macosx", "icon\r", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("@eadir", "lost+found"),
    )
)
Folder = tuple[str, ...]
SortKey = tuple[str | tuple[int, str], ...]


class Skipped(NamedTuple):
    """The name of a file that is not read, and why: its ending, or words."""

    name: str
    reason: str


def components(name: str) -> Folder:
    """Returns the folders and the file of a name; `./a/b`, `/a/b` and `a/b` with backslashes are `a/b`."""
    parts = name.replace("\\", "/").split("/")
    if "" in parts or "." in parts or ".." in parts:
        parts = posixpath.normpath("/" + "/".join(parts)).split("/")
    return tuple(part for part in parts if part)


def natural(name: str) -> SortKey:
    """Returns a sort key for natural order, 2 before 10."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(
        (len(part.lstrip("0")), part.lstrip("0")) if odd % 2 else part for odd, part in enumerate(parts)
    )


def unseen(parts: Folder) -> str | None:
    """Returns why a file or folder is not looked at, whatever it holds; None if it is."""
    if any(part.startswith(".") for part in parts):
        return "hidden"
    return None if SYSTEM.isdisjoint(part.lower() for part in parts) else "of the operating system"


def why_skipped(name: str) -> str | None:
    """Returns why a file is not read as an image; None if it is."""
    return why_not_an_image(components(name))


def why_not_an_image(parts: Folder) -> str | None:
    """Returns why a file is not read as an image, by its folders and name; None if it is."""
    if reason := unseen(parts):
        return reason
    suffix = posixpath.splitext(parts[-1])[1].lower() if parts else ""
    return None if suffix in IMAGE_SUFFIXES else printable(suffix) or "without ending"


def summary(skipped: Sequence[Skipped]) -> str:
    """Returns one line on skipped files: `65 files: 30 .gif, 30 .tif, 5 .jfif; the first is a.gif`."""
    counts = collections.Counter(file.reason for file in skipped).most_common()
    shown = ", ".join(f"{count} {reason}" for reason, count in counts[:8])
    more = f" and {sum(count for _, count in counts[8:])} others" if counts[8:] else ""
    files = "1 file" if len(skipped) == 1 else f"{len(skipped)} files"
    return f"{files}: {shown}{more}; the first is {printable(min(skipped).name)}"


def shortened(names: Sequence[str], most: int = 12) -> str:
    """Returns the first names of a list, with commas between."""
    return ", ".join(map(printable, names[:most])) + (", ..." if len(names) > most else "")


def mixed(names: Iterable[str]) -> list[str]:
    """Sorts names by their hashes, so that the first images have all classes; sorted by name they would have one."""
    return sorted(names, key=hashed)


def hashed(name: str) -> bytes:
    """Returns the sha256 of a name, also of one that is no UTF-8."""
    return hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()
