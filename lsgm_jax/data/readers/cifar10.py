"""CIFAR-10 (Krizhevsky 2009), from the published pickles or binary batches, or from batches of JPEG files."""

import functools
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int64

from lsgm_jax.bounded import AGAIN, shown
from lsgm_jax.data.readers.archives import Archive, matching, open_archive
from lsgm_jax.data.readers.batches import class_labels, rows
from lsgm_jax.data.readers.contents import Contents, Example, Stream, arrays
from lsgm_jax.data.readers.members import opened, origin_of
from lsgm_jax.data.readers.pickles import unpickle
from lsgm_jax.errors import DataError
from lsgm_jax.numpy_files import read_npz

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # bytes per image of the binary version: the label, then the pixels
BATCH_BYTES = 2**28  # the published batches have 31 MB

Batch = Callable[[Archive, str], Iterator[Example]]


def read_cifar10(source: pathlib.Path) -> Contents:
    """Reads the batches in a folder or a tar file.

    Raises:
        DataError: if there are no batches, or they are not those of CIFAR-10.
    """
    archive = open_archive(source)
    names, batch = _format(archive)
    splits = {
        split: Stream(
            count=sum(1 for _ in _all(archive, found, batch)),
            read=functools.partial(_all, archive, found, batch),
        )
        for split, found in names.items()
    }
    files = archive.files([name for found in names.values() for name in found])
    return Contents(shape=(SIDE, SIDE, 3), splits=splits, classes=CLASSES, files=files)


def _format(archive: Archive) -> tuple[dict[str, list[str]], Batch]:
    """Returns the names of the batches of each split, and the function that reads one."""
    for patterns, batch in FORMATS:
        names = {split: matching(archive, pattern) for split, pattern in patterns.items()}
        if any(names.values()):
            return {split: found for split, found in names.items() if found}, batch
    raise DataError(
        f"no batches of CIFAR-10 in {archive.path}: looked for data_batch_1 ... test_batch (pickles, or .bin) "
        "and train_0.npz ... test.npz (JPEG)"
    )


def _all(archive: Archive, names: list[str], batch: Batch) -> Iterator[Example]:
    for name in names:
        yield from batch(archive, name)


def _pickled(archive: Archive, name: str) -> Iterator[Example]:
    origin = origin_of(archive, name)
    content = unpickle(archive.read(name, BATCH_BYTES), origin)
    images = rows(content, SIDE, origin)
    return arrays(images, class_labels(content.get("labels"), len(images), len(CLASSES), origin), name)


def _binary(archive: Archive, name: str) -> Iterator[Example]:
    content = archive.read(name, BATCH_BYTES)
    if not content or len(content) % RECORD:
        raise DataError(
            f"{origin_of(archive, name)} is damaged or incomplete: {len(content)} bytes are no multiple of {RECORD}: "
            "get it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    images = records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    labels = class_labels(records[:, 0], len(images), len(CLASSES), origin_of(archive, name))
    return arrays(images, labels, name)


def _jpegs(archive: Archive, name: str) -> Iterator[Example]:
    """Reads an .npz of concatenated files (`jpeg`), their bounds (`offsets`, one more than files), and `labels`."""
    origin = origin_of(archive, name)
    with opened(archive, name, BATCH_BYTES) as (file, _):
        batch = read_npz(file, origin, names=("jpeg", "offsets", "labels"))
    if missing := [key for key in ("jpeg", "offsets", "labels") if key not in batch]:
        raise DataError(f"{origin} is no batch of JPEG files, it has no {missing[0]!r}: {AGAIN}")
    files, offsets = batch["jpeg"].tobytes(), _bounds(batch["offsets"], batch["jpeg"].nbytes, origin)
    labels = class_labels(batch["labels"], len(offsets) - 1, len(CLASSES), origin)
    for index, label in enumerate(labels):
        file = files[offsets[index] : offsets[index + 1]]
        yield Example(file, int(label), f"image {index} of {name}")


def _bounds(offsets: np.ndarray, size: int, origin: str) -> Int64[np.ndarray, "ends"]:
    """Returns where each file begins, and the end of the last: from 0 to `size`, none before the one before it."""
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets):
        found = f"{offsets.dtype} {list(offsets.shape)}"
        raise DataError(f"{origin} has {found} for 'offsets', not integers, one more than files: {AGAIN}")
    expected = np.maximum.accumulate(np.clip(offsets, 0, size))
    expected[0], expected[-1] = 0, size
    if len(wrong := np.flatnonzero(offsets != expected)):
        raise DataError(
            f"{origin} has the offset {shown(int(offsets[wrong[0]]))} at index {wrong[0]}, which does not describe its "
            f"{size} bytes: {AGAIN}"
        )
    return offsets.astype(np.int64)


FORMATS: tuple[tuple[dict[str, str], Batch], ...] = (
    ({"train": r"data_batch_\d+", "test": "test_batch"}, _pickled),
    ({"train": r"data_batch_\d+\.bin", "test": r"test_batch\.bin"}, _binary),
    ({"train": r"train_\d+\.npz", "test": r"test\.npz"}, _jpegs),
)
