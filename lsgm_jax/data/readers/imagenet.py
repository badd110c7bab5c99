"""ImageNet downsampled to 32 x 32 or 64 x 64 pixels (Chrabaszcz, Loshchilov, Hutter 2017)."""

import functools
import io
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from lsgm_jax.data.readers.archives import Archive, matching, open_archive
from lsgm_jax.data.readers.contents import Contents, Example, Stream, arrays
from lsgm_jax.data.readers.pickles import rows, unpickle
from lsgm_jax.errors import DataError

PATTERNS = {"train": r"train_data_batch_\d+(\.npz)?", "validation": r"val_data(\.npz)?"}
CLASSES = 1000
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
    origin = f"{name} in {archive.path}"
    content = (
        _npz(archive.read(name), origin) if name.endswith(".npz") else unpickle(archive.read(name), origin)
    )
    images, labels = rows(content, side, origin), np.asarray(content.get("labels", ())) - 1
    if len(labels) != len(images) or labels.min() < 0 or labels.max() >= CLASSES:
        raise DataError(f"{origin} needs one label of 1 to {CLASSES} for each of its {len(images)} images")
    return images, labels


def _npz(content: bytes, origin: str) -> dict[str, Any]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as batch:
            return {key: batch[key] for key in ("data", "labels") if key in batch}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{origin} is damaged or incomplete ({error}): get it again") from error
