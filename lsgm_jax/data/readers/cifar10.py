"""CIFAR-10 (Krizhevsky 2009), from the published pickles or binary batches, or from batches of JPEG files."""

import functools
import io
import pathlib
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from lsgm_jax.data.readers.archives import Archive, matching, open_archive
from lsgm_jax.data.readers.contents import Contents, Example, Stream, arrays
from lsgm_jax.data.readers.pickles import rows, unpickle
from lsgm_jax.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE  # bytes per image of the binary version: the label, then the pixels

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
    origin = f"{name} in {archive.path}"
    content = unpickle(archive.read(name), origin)
    images, labels = rows(content, SIDE, origin), np.asarray(content.get("labels", ()))
    if len(images) != len(labels):
        raise DataError(f"{origin} has {len(labels)} 'labels' for {len(images)} images: it is not CIFAR-10")
    return arrays(images, labels, name)


def _binary(archive: Archive, name: str) -> Iterator[Example]:
    content = archive.read(name)
    if not content or len(content) % RECORD:
        raise DataError(
            f"{name} in {archive.path} is damaged or incomplete: {len(content)} bytes are no multiple of {RECORD}: "
            "get it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    images = records[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return arrays(images, records[:, 0], name)


def _jpegs(archive: Archive, name: str) -> Iterator[Example]:
    """Reads an .npz of concatenated files (`jpeg`), their bounds (`offsets`, one more than files), and `labels`."""
    origin = f"{name} in {archive.path}"
    try:
        with np.load(io.BytesIO(archive.read(name)), allow_pickle=False) as batch:
            files, offsets, labels = batch["jpeg"].tobytes(), batch["offsets"], batch["labels"]
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{origin} is no batch of JPEG files, or damaged ({error}): get it again") from error
    if len(offsets) != len(labels) + 1 or offsets[-1] != len(files):
        raise DataError(
            f"{origin} has {len(labels)} labels and {len(files)} bytes that its offsets do not describe"
        )
    for index, label in enumerate(labels):
        file = files[offsets[index] : offsets[index + 1]]
        yield Example(file, int(label), f"image {index} of {name}")


FORMATS: tuple[tuple[dict[str, str], Batch], ...] = (
    ({"train": r"data_batch_\d+", "test": "test_batch"}, _pickled),
    ({"train": r"data_batch_\d+\.bin", "test": r"test_batch\.bin"}, _binary),
    ({"train": r"train_\d+\.npz", "test": r"test\.npz"}, _jpegs),
)
