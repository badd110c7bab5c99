"""OMNIGLOT for likelihood evaluation: `chardata.mat`, the split of Burda, Grosse and Salakhutdinov at 28 x 28."""

import functools
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from lsgm_jax.bounded import AGAIN, shown
from lsgm_jax.data.readers.contents import Contents, Stream, arrays
from lsgm_jax.data.readers.matlab import read_matlab
from lsgm_jax.errors import DataError

KEYS = {"train": ("data", "target"), "test": ("testdata", "testtarget")}
SIDE = 28


def read_omniglot(source: pathlib.Path) -> Contents:
    """Reads 24,345 characters for training and 8,070 for test; the label is the alphabet.

    The intensities in the file, 0 to 1, are rounded to 8 bits.

    Raises:
        DataError: if `source` is not that file.
    """
    path = source / "chardata.mat" if source.is_dir() else source
    if not path.is_file():
        raise DataError(f"no {path}: give --source the file chardata.mat, or its folder")
    content = read_matlab(path, [key for keys in KEYS.values() for key in keys])
    labels, alphabets = _labels(content, path)
    splits = {}
    for split, (images_key, _) in KEYS.items():
        if images_key not in content:
            raise DataError(f"{path} has no {images_key!r}: it is not the chardata.mat of Burda's split")
        images = _images(content[images_key], f"{images_key!r} in {path}")
        numbers = labels.get(split)
        if numbers is not None and len(numbers) != len(images):
            raise DataError(
                f"{path} has {len(numbers)} labels for the {len(images)} images of {images_key!r}"
            )
        read = functools.partial(arrays, images, numbers, f"{images_key!r} in {path.name}")
        splits[split] = Stream(count=len(images), read=read)
    classes = [f"alphabet {index}" for index in range(alphabets)]
    return Contents(shape=(SIDE, SIDE, 1), splits=splits, classes=classes, files=[path])


def _labels(content: Mapping[str, np.ndarray], path: pathlib.Path) -> tuple[dict[str, np.ndarray], int]:
    """Returns the alphabets of the images by split, and their number; nothing and 0 if a split has no labels."""
    if not all(key in content for _, key in KEYS.values()):
        return {}, 0
    shapes = {key: content[key].shape for _, key in KEYS.values()}
    if any(len(shape) != 2 for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) > 1:
        listed = ", ".join(f"{key!r} {list(shape)}" for key, shape in shapes.items())
        raise DataError(f"{path} has {listed}, not a column for each image with a row for each alphabet")
    alphabets = next(iter(shapes.values()))[0]
    return {split: _marked(content[key], f"{key!r} in {path}") for split, (_, key) in KEYS.items()}, alphabets


def _marked(columns: Shaped[np.ndarray, "alphabets n"], origin: str) -> Int[np.ndarray, "n"]:
    """Returns the index of the one largest value of each column."""
    if not columns.size:
        return np.zeros(0, int)
    clear = (columns == columns.max(axis=0)).sum(axis=0) == 1  # NaN equals nothing
    if not clear.all():
        raise DataError(f"{origin} marks no one alphabet in column {np.argmin(clear)}: {AGAIN}")
    return np.argmax(columns, axis=0)


def _images(intensities: Shaped[np.ndarray, "..."], origin: str) -> UInt8[np.ndarray, "n 28 28 1"]:
    """Converts columns of 784 intensities, each an image in column-major order, to uint8."""
    if intensities.ndim != 2 or len(intensities) != SIDE * SIDE:
        raise DataError(
            f"{origin} has {list(intensities.shape)} values, not images of {SIDE} x {SIDE} as columns"
        )
    valid = (intensities >= 0) & (intensities <= 1)  # false for NaN
    if not valid.all():
        pixel, index = np.unravel_index(np.argmin(valid), valid.shape)
        value = shown(intensities[pixel, index].item())
        raise DataError(
            f"{origin} has the intensity {value} in image {index}: intensities are 0 to 1, {AGAIN}"
        )
    upright = intensities.T.reshape(-1, SIDE, SIDE).transpose(0, 2, 1)
    return np.round(255 * upright).astype(np.uint8)[..., None]
