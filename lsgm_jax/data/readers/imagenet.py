"""ImageNet downsampled to 32 x 32 or 64 x 64 pixels (Chrabaszcz, Loshchilov, Hutter 2017)."""

import functools
import pathlib
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from lsgm_jax.data.readers.archives import Archive, matching, open_archive
from lsgm_jax.data.readers.batches import class_labels, rows
from lsgm_jax.data.readers.contents import Contents, Example, Stream, arrays
from lsgm_jax.data.readers.members import opened, origin_of
from lsgm_jax.data.readers.pickles import unpickle
from lsgm_jax.errors import DataError
from lsgm_jax.numpy_files import read_npz

PATTERNS = {"train": r"train_data_batch_\d+(\.npz)?", "validation": r"val_data(\.npz)?"}
CLASSES = 1000
BATCH_BYTES = 2**31  # the published batches of 64 x 64 pixels have 1.6 GB
Place = tuple[Archive, str]


def read_imagenet(source: pathlib.Path, *, side: int) -> Contents:
    """Reads the batches (.npz files or pickles) in a folder, a zip file, or a folder of zip files.

    Labels are the published ones minus 1, so they start at 0.

    Args:
        source: path of the folder or zip file.
        side: expected height and width, 32 or 64.

    Raises:
        DataError: if there are no batches, or the images are not `side` x `side`.
    """
    archives = [open_archive(source)]
    archives += [open_archive(path) for path in sorted(source.glob("*.zip"))]  # none if `source` is a file
    places = {
        split: [(archive, name) for archive in archives for name in matching(archive, pattern)]
        for split, pattern in PATTERNS.items()
    }
    splits = {
        split: Stream(
            count=_count(found, side),
            read=functools.partial(_all, found, side),
        )
        for split, found in places.items()
        if found
    }
    if not splits:
        raise DataError(
            f"no batches of ImageNet in {source}: looked for train_data_batch_1 ... and val_data, .npz or not"
        )
    files = [archive.files([name])[0] for found in places.values() for archive, name in found]
    classes = [str(index) for index in range(CLASSES)]
    return Contents(shape=(side, side, 3), splits=splits, classes=classes, files=list(dict.fromkeys(files)))


def _count(places: list[Place], side: int) -> int:
    """Counts the images by loading all batches, which finds damage before anything is written."""
    bar = tqdm(places, desc="checking batches", delay=1, leave=False)
    return sum(len(_load(place, side)[1]) for place in bar)


def _all(places: list[Place], side: int) -> Iterator[Example]:
    for place in places:
        yield from arrays(*_load(place, side), place[1])


def _load(place: Place, side: int) -> tuple[np.ndarray, np.ndarray]:
    archive, name = place
    origin = origin_of(archive, name)
    if name.endswith(".npz"):
        with opened(archive, name, BATCH_BYTES) as (file, _):
            content = read_npz(file, origin, names=("data", "labels"))
    else:
        content = unpickle(archive.read(name, BATCH_BYTES), origin)
    images = rows(content, side, origin)
    return images, class_labels(content.get("labels"), len(images), CLASSES, origin, first=1)
