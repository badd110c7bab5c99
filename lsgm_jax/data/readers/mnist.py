"""MNIST (LeCun, Bottou, Bengio, Haffner 1998), from the published IDX files, compressed or not.

It reads other data sets in this format too (Fashion-MNIST, KMNIST).
"""

import functools
import gzip
import pathlib
import re
import struct
from collections.abc import Iterator

import numpy as np

from lsgm_jax.data.readers.archives import Archive, matching, open_archive, reading
from lsgm_jax.data.readers.contents import Contents, Example, Stream, arrays
from lsgm_jax.errors import DataError

PREFIXES = {"train": "train", "t10k": "test"}
IMAGES, LABELS = 0x0803, 0x0801  # magic numbers: unsigned bytes with three axes, and with one


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
        images = _idx(archive, name, IMAGES)
        if images.shape[1:] != (28, 28):
            height, width = images.shape[1:]
            raise DataError(f"{name} in {source} has images of {height} x {width}, not 28 x 28")
        read = functools.partial(_examples, archive, name, labelled, labels[split])
        splits[split] = Stream(count=len(images), read=read)
    used = [name for name in (*names.values(), *labels.values()) if name is not None]
    classes = [] if None in labels.values() else [str(digit) for digit in range(10)]
    return Contents(shape=(28, 28, 1), splits=splits, classes=classes, files=labelled.files(used))


def _labels_of(archive: Archive, images: str) -> str | None:
    name = re.sub(r"images([-.])idx3", r"labels\1idx1", images)
    candidates = [name, name.removesuffix(".gz"), name + ".gz"]
    return next((candidate for candidate in candidates if candidate in archive.names()), None)


def _examples(archive: Archive, name: str, labelled: Archive, labels: str | None) -> Iterator[Example]:
    images = _idx(archive, name, IMAGES)
    classes = None if labels is None else _idx(labelled, labels, LABELS)
    if classes is not None and len(classes) != len(images):
        raise DataError(f"{labels} has {len(classes)} labels for the {len(images)} images of {name}")
    return arrays(images[..., None], classes, name)


def _idx(archive: Archive, name: str, magic: int) -> np.ndarray:
    """Reads the array in an IDX file: a magic number of four bytes, the length of each axis, and the values."""
    origin = archive.files([name])[0]
    with reading(origin):
        content = archive.read(name)
        if name.endswith(".gz"):
            content = gzip.decompress(content)
    axes = magic & 0xFF
    header = 4 + 4 * axes
    if len(content) < header or struct.unpack(">I", content[:4])[0] != magic:
        raise DataError(f"{origin} is no IDX file of {'images' if axes == 3 else 'labels'}")
    shape = struct.unpack(f">{axes}I", content[4:header])
    if len(content) - header != np.prod(shape, dtype=np.int64):
        raise DataError(
            f"{origin} is damaged or incomplete: it has {len(content) - header} bytes of values where its header says "
            f"{' x '.join(map(str, shape))}: get it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
