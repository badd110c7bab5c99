"""Checks of encoded images that need no decoding: a damaged test image should not be found after training.

The header tells size and format, and the end of the file tells whether it is whole. Only images whose end does not tell
are decoded.
"""

import io
import pathlib
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, cast

from PIL import Image
from tqdm import tqdm

from lsgm_jax.bounded import reading
from lsgm_jax.data.images import FORMATS, NPY, Layout, check_shape, decode, turned_size
from lsgm_jax.errors import printable

THREADS = 8
TAIL = 16


def inspect_files(paths: Sequence[pathlib.Path], layout: Layout) -> None:
    """Checks image files.

    Raises:
        DataError: names the first that is damaged, truncated, too large, or of another size than `layout`.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda path: _inspect_file(path, layout), paths)
        for _ in tqdm(found, total=len(paths), desc="checking images", unit=" images", delay=1, leave=False):
            pass


def inspect_bytes(encoded: bytes, layout: Layout, origin: str) -> None:
    """Checks the content of an image file; see `inspect_files`."""
    _inspect(io.BytesIO(encoded), layout, origin)


def _inspect_file(path: pathlib.Path, layout: Layout) -> None:
    origin = printable(str(path))
    with reading(origin), path.open("rb") as file:
        _inspect(file, layout, origin)


def _inspect(file: io.BufferedIOBase, layout: Layout, origin: str) -> None:
    size = _size_if_whole(file) if layout.kind == "grey" else None
    if size is None or size[0] * size[1] > layout.pixels:
        file.seek(0)
        decode(file.read(), layout, origin)
    elif layout.fit == "exact":
        check_shape((size[1], size[0]), layout, origin)


def _size_if_whole(file: io.BufferedIOBase) -> tuple[int, int] | None:
    """Returns width and height of an image that has a header and an end; None if only decoding can tell."""
    start = file.read(TAIL)
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - TAIL))
    if start.startswith(NPY) or not _is_whole(start, file.read(), length):
        return None
    file.seek(0)
    try:
        with Image.open(cast(IO[bytes], file), formats=FORMATS) as image:
            size = image.size
            if image.mode in ("I", "F"):  # their values may be out of range
                return None
            if image.format != "PNG":
                return turned_size(image)
            image.verify()  # checksums; orientation may follow the pixels
            return size if size[0] == size[1] else None
    except Exception:  # decoding names it
        return None


def _is_whole(start: bytes, end: bytes, length: int) -> bool:
    if start.startswith(b"\x89PNG"):
        return end.endswith(b"IEND\xaeB`\x82")
    if start.startswith(b"\xff\xd8"):
        return end.endswith(b"\xff\xd9")
    if start.startswith(b"RIFF"):
        return struct.unpack("<I", start[4:8])[0] + 8 == length
    if start.startswith(b"BM"):
        return struct.unpack("<I", start[2:6])[0] == length
    return False
