"""An unpickler for dictionaries of numpy arrays, numbers and text, as CIFAR and small ImageNet come in.

A pickle is a program that names functions and has them called: every name but the few that make up an array is refused.
"""

import io
import pickle
from typing import Any

import numpy as np

from lsgm_jax.data.readers.archives import reading
from lsgm_jax.errors import DataError

# numpy writes its arrays as calls of these; its modules have been renamed since the files were made.
ARRAYS = {("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")} | {
    (f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")
}


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and Python's own containers; text of Python 2 becomes bytes."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")

    def find_class(self, module: str, name: str, /) -> Any:
        """What makes up an array.

        Raises:
            DataError: for any other name.
        """
        if (module, name) not in ARRAYS:
            raise DataError(
                f"its pickle asks for {module}.{name}, which no data need: refused, and nothing was run"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def unpickle(content: bytes, origin: str) -> dict[str, Any]:
    """The dictionary in a pickle, its keys as text.

    Raises:
        DataError: if it is none, damaged, or asks for more than data.
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
    """Its "data", [n, 3 side side] by channel, as images [n, side, side, 3].

    Raises:
        DataError: if they are of another shape.
    """
    data = content.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * side * side,):
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(
            f"{origin} has {found} for 'data', not uint8 [n, {3 * side * side}]: it is another data set"
        )
    return data.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
