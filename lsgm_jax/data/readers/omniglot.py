"""OMNIGLOT for likelihood evaluation: `chardata.mat`, the split of Burda, Grosse and Salakhutdinov at 28 x 28."""

import functools
import pathlib
from typing import Any

import numpy as np

from lsgm_jax.data.readers.contents import Contents, Stream, arrays
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
    content = _load(path)
    splits, alphabets = {}, 0
    for split, (images_key, labels_key) in KEYS.items():
        images = _images(content[images_key], path)
        labels = np.argmax(content[labels_key], axis=0) if labels_key in content else None
        if labels is not None:
            alphabets = content[labels_key].shape[0]
            if len(labels) != len(images):
                raise DataError(
                    f"{path} has {len(labels)} labels for the {len(images)} images of {images_key!r}"
                )
        read = functools.partial(arrays, images, labels, f"{images_key!r} in {path.name}")
        splits[split] = Stream(count=len(images), read=read)
    labelled = all(labels_key in content for _, labels_key in KEYS.values())
    classes = [f"alphabet {index}" for index in range(alphabets)] if labelled else []
    return Contents(shape=(SIDE, SIDE, 1), splits=splits, classes=classes, files=[path])


def _load(path: pathlib.Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    # The errors of loadmat for damaged or foreign files are not documented.
    except Exception as error:
        raise DataError(f"{path} is no MATLAB file, or damaged ({error}): get it again") from error
    missing = [images_key for images_key, _ in KEYS.values() if images_key not in content]
    if missing:
        raise DataError(f"{path} has no {missing[0]!r}: it is not the chardata.mat of Burda's split")
    return content


def _images(intensities: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Converts columns of 784 intensities, each an image in column-major order, to uint8 [n, 28, 28, 1]."""
    if intensities.ndim != 2 or len(intensities) != SIDE * SIDE:
        raise DataError(f"{path} has images of {len(intensities)} pixels, not of {SIDE} x {SIDE}")
    if intensities.min() < 0 or intensities.max() > 1:
        raise DataError(f"{path} has intensities beyond 0 and 1")
    upright = intensities.T.reshape(-1, SIDE, SIDE).transpose(0, 2, 1)
    return np.round(255 * upright).astype(np.uint8)[..., None]
