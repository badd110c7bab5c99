"""The files of archives as streams, so that a header can be checked before the rest is read."""

import contextlib
import io
from collections.abc import Iterator

from lsgm_jax.bounded import LIMITS, check_size, reading
from lsgm_jax.data.readers.archives import Archive, Folder
from lsgm_jax.errors import printable


def origin_of(archive: Archive, name: str) -> str:
    """Returns the name of a file for errors, with that of its archive."""
    return printable(f"{name} in {archive.path}")


@contextlib.contextmanager
def opened(
    archive: Archive, name: str, most: int = LIMITS.content
) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """Yields the stream of a file and its size; a file on disk is not read into memory.

    Raises:
        DataError: if it cannot be read, is damaged, or larger than `most` bytes.
    """
    origin = origin_of(archive, name)
    if isinstance(archive, Folder):
        (path,) = archive.files([name])
        with reading(origin), path.open("rb") as file:
            yield file, check_size(path.stat().st_size, most, origin)
    else:
        content = archive.read(name, most)
        yield io.BytesIO(content), len(content)
