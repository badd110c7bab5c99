"""Checks of the batches of images and labels that pickles and NPZ files hold."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from lsgm_jax.bounded import AGAIN, shown
from lsgm_jax.errors import DataError


def rows(content: Mapping[str, Any], side: int, origin: str) -> UInt8[np.ndarray, "n side side 3"]:
    """Returns the images of the entry "data", which is [n, 3 * side * side] with channels first.

    Raises:
        DataError: if there is no "data", or it has another shape or dtype.
    """
    data = content.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * side * side,):
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(
            f"{origin} has {found} for 'data', not uint8 [n, {3 * side * side}]: it is another data set"
        )
    return data.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


def class_labels(
    values: Any, count: int, classes: int, origin: str, *, first: int = 0
) -> Int64[np.ndarray, "count"]:
    """Returns the labels of `count` images, counted from 0.

    Args:
        values: what a file has for labels: an array or a list of integers.
        count: number of images.
        classes: number of classes.
        origin: name of the file in errors.
        first: the label of the first class in the file.

    Raises:
        DataError: if the labels are no list, are not one per image, or one is not an integer of a class; it names
            the index and the value.
    """
    if not isinstance(values, np.ndarray | list | tuple):
        raise DataError(
            f"{origin} has {type(values).__name__} for 'labels', not one label per image: {AGAIN}"
        )
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise DataError(f"{origin} has 'labels' of shape {list(values.shape)}, not [{count}]: {AGAIN}")
    if len(values) != count:
        raise DataError(f"{origin} has {len(values)} 'labels' for {count} images: it is another data set")
    found = np.zeros(count, np.int64)
    for index, value in enumerate(values):
        if not _is_whole(value) or not first <= value < first + classes:
            raise DataError(
                f"{origin} has the label {shown(value)} at index {index}: labels here are integers of {first} to "
                f"{first + classes - 1}, so it is damaged, or another data set"
            )
        found[index] = int(value) - first
    return found


def _is_whole(value: Any) -> bool:
    if isinstance(value, float | np.floating):
        return bool(value.is_integer())
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
