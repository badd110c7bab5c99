"""A safe unpickler for dictionaries of numpy arrays, numbers and text, the format of CIFAR and downsampled ImageNet.

A pickle is a program that can call any function it names. This unpickler refuses all names but the few that build
arrays.
"""

import io
import pickle
from typing import Any

import numpy as np

from lsgm_jax.data.readers.archives import reading
from lsgm_jax.errors import DataError

# numpy pickles arrays as calls of these. Its modules have been renamed since the files were made.
ARRAYS = {("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")} | {
    (f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and the containers of Python; strings of Python 2 become bytes."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")

    def find_class(self, module: str, name: str, /) -> Any:
        """Returns a function or class that builds arrays.

        Raises:
            DataError: for any other name.
        """
        if (module, name) not in ARRAYS:
            raise DataError(
                f"its pickle names {module}.{name}, which no data need: refused, and nothing was run"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def unpickle(content: bytes, origin: str) -> dict[str, Any]:
    """Returns the dictionary in a pickle, with keys as text.

    Raises:
        DataError: if it is not a dictionary, is damaged, or names anything that arrays do not need.
    """
    try:
        with reading(origin):
            loaded = ArrayUnpickler(content).load()
    except DataError as error:
        raise DataError(f"{origin}: {error}") from error
    # Damaged opcodes can raise anything.
    except Exception as error:
        raise DataError(f"{origin} is damaged or incomplete ({error}): get it again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{origin} is no dictionary of arrays")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in loaded.items()}


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
