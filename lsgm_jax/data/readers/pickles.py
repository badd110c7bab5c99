"""Pickles of dictionaries of numpy arrays, numbers and text, the format of CIFAR and downsampled ImageNet."""

import io
import pickle
from typing import Any

from lsgm_jax.errors import DataError, printable
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
        raise DataError(f"{origin}: {printable(str(error))}; get it again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{origin} is no dictionary of arrays")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in loaded.items()
    }
