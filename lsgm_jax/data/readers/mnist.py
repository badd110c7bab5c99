"""MNIST (LeCun, Bottou, Bengio, Haffner 1998), from the published IDX files, compressed or not.

It reads other data sets in this format too (Fashion-MNIST, KMNIST).
"""

import functools
import gzip
import math
import pathlib
import re
import struct
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt8

from lsgm_jax.bounded import LIMITS, Readable, check_ended, check_size, read_exactly, reading
from lsgm_jax.data.readers.archives import Archive, matching, open_archive
from lsgm_jax.data.readers.batches import class_labels
from lsgm_jax.data.readers.contents import Contents, Example, Stream, arrays
from lsgm_jax.data.readers.members import opened, origin_of
from lsgm_jax.errors import DataError

PREFIXES = {"train": "train", "t10k": "test"}
IMAGES, LABELS = 0x0803, 0x0801  # magic numbers: unsigned bytes with three axes, and with one
SIDE, CLASSES = 28, 10


def read_mnist(source: pathlib.Path) -> Contents:
    """Reads the splits in a folder or an archive, or the split of a single file, with the label files next to it.

    Raises:
        DataError: if there are no images, or a file is damaged.
    """
    archive, names = open_archive(source), {}
    for prefix, split in PREFIXES.items():
        if found := matching(archive, rf"{prefix}-images[-.]idx3-ubyte(\.gz)?"):
            names[split] = found[0]
    if not names:
        raise DataError(
            f"no images of MNIST in {source}: looked for train-images-idx3-ubyte and t10k-images-idx3-ubyte, "
            "with .gz or without"
        )
    labelled = open_archive(source.parent) if source.is_file() and archive.path == source.parent else archive
    labels = {split: _labels_of(labelled, name) for split, name in names.items()}
    if len({label is None for label in labels.values()}) == 2:
        raise DataError(
            f"only some of the splits in {source} have labels: put all label files next to the images"
        )
    splits = {}
    for split, name in names.items():
        count = len(_images(archive, name))
        classes = _classes(labelled, labels[split], count)
        read = functools.partial(_examples, archive, name, classes)
        splits[split] = Stream(count=count, read=read)
    used = [name for name in (*names.values(), *labels.values()) if name is not None]
    names_of_classes = [] if None in labels.values() else [str(digit) for digit in range(CLASSES)]
    return Contents(
        shape=(SIDE, SIDE, 1), splits=splits, classes=names_of_classes, files=labelled.files(used)
    )


def _labels_of(archive: Archive, images: str) -> str | None:
    name = re.sub(r"images([-.])idx3", r"labels\1idx1", images)
    candidates = [name, name.removesuffix(".gz"), name + ".gz"]
    return next((candidate for candidate in candidates if candidate in archive.names()), None)


def _examples(archive: Archive, name: str, classes: Int64[np.ndarray, "n"] | None) -> Iterator[Example]:
    return arrays(_images(archive, name)[..., None], classes, name)


def _images(archive: Archive, name: str) -> UInt8[np.ndarray, "n 28 28"]:
    images = _idx(archive, name, IMAGES)
    if images.shape[1:] != (SIDE, SIDE):
        height, width = images.shape[1:]
        raise DataError(f"{origin_of(archive, name)} has images of {height} x {width}, not {SIDE} x {SIDE}")
    return images


def _classes(archive: Archive, name: str | None, count: int) -> Int64[np.ndarray, "n"] | None:
    if name is None:
        return None
    return class_labels(_idx(archive, name, LABELS), count, CLASSES, origin_of(archive, name))


def _idx(archive: Archive, name: str, magic: int) -> UInt8[np.ndarray, "..."]:
    """Reads the array in an IDX file, compressed or not."""
    origin = origin_of(archive, name)
    with opened(archive, name) as (stream, size), reading(origin):
        if not name.endswith(".gz"):
            return _values(stream, size, size, magic, origin)
        with gzip.open(stream) as plain:
            return _values(plain, None, LIMITS.expanded(size), magic, origin)


def _values(
    stream: Readable, size: int | None, most: int, magic: int, origin: str
) -> UInt8[np.ndarray, "..."]:
    """Returns the values behind the header: a magic number of four bytes, and the length of each axis.

    Args:
        stream: at the start of the header.
        size: bytes of the stream; None if that is not known before it is decompressed.
        most: bytes that the values may have.
        magic: the expected magic number.
        origin: name of the file in errors.
    """
    axes = magic & 0xFF
    header = stream.read(4 + 4 * axes)
    if len(header) < 4 + 4 * axes or struct.unpack(">I", header[:4])[0] != magic:
        raise DataError(f"{origin} is no IDX file of {'images' if axes == 3 else 'labels'}")
    shape = struct.unpack(f">{axes}I", header[4:])
    count = math.prod(shape)
    if size is not None and count != size - len(header):
        raise DataError(
            f"{origin} is damaged or incomplete: it has {size - len(header)} bytes of values where its header says "
            f"{' x '.join(map(str, shape))}: get it again"
        )
    values = read_exactly(stream, check_size(count, most, origin), origin, most=most)
    check_ended(stream, origin)
    return values.reshape(shape)
