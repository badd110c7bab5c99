"""Pickles of dictionaries of numpy arrays, numbers and text, the format of CIFAR and downsampled ImageNet."""

import io
import pickle
from typing import Any

import numpy as np

from lsgm_jax.errors import DataError
from lsgm_jax.unpickling.machine import load
from lsgm_jax.unpickling.numpy_names import NUMPY_NAMES


def unpickle(content: bytes, origin: str) -> dict[str, Any]:
    """Returns the dictionary in a pickle, with keys as text.

    Raises:
        DataError: if it is not a dictionary, is damaged, or names anything that arrays do not need.
    """
    try:
        loaded = load(io.BytesIO(content), NUMPY_NAMES)
    except pickle.UnpicklingError as error:
        raise DataError(f"{origin}: {error}; get it again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{origin} is no dictionary of arrays")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in loaded.items()
    }


def rows(content: dict[str, Any], side: int, origin: str) -> np.ndarray:
    """Returns the images [n, side, side, 3] of the entry "data", which is [n, 3 * side * side] with channels first.

    Raises:
        DataError: if "data" has another shape or dtype.
    """
    data = content.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * side * side,):
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(
            f"{origin} has {found} for 'data', not uint8 [n, {3 * side * side}]: it is another data set"
        )
    return data.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
