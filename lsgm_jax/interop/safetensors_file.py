"""Reads `.safetensors` files to memory-mapped numpy arrays, within bounds.

The format is the length of a header (eight bytes, little-endian), the header in JSON, and the bytes of all tensors
without gaps: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}. This reader maps the file as that of
`torch.save` does, which the library of the format does not do for numpy.
"""

import json
import math
import mmap
from typing import Any

import jax.numpy as jnp
import numpy as np

from lsgm_jax.errors import ConversionError

LARGEST_HEADER = 2**23  # 50,000 tensors
MOST_AXES = 32
DTYPES = {
    "BOOL": np.dtype(bool),
    "BF16": np.dtype(jnp.bfloat16),
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{f"{kind.upper()}{bits}": np.dtype(f"<{kind}{bits // 8}") for kind in "iu" for bits in (8, 16, 32, 64)},
    "C64": np.dtype("<c8"),
}


def read_safetensors(content: mmap.mmap) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by name, read-only views of it.

    Raises:
        ConversionError: if the header is damaged, or does not describe the bytes that follow it.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    if start > min(len(content), 8 + LARGEST_HEADER):
        raise ConversionError(f"has a header of {start - 8} bytes: it is damaged, download it again")
    header = json.loads(content[8:start], object_pairs_hook=_distinct)
    header.pop("__metadata__", None)
    _require_cover({name: _offsets(name, entry) for name, entry in header.items()}, len(content) - start)
    return {name: _tensor(content, start, name, entry) for name, entry in header.items()}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ConversionError("has two tensors of one name: it is damaged, download it again")
    return entries


def _offsets(name: str, entry: Any) -> tuple[int, int]:
    start, stop = entry["data_offsets"]
    if not _are_counts(start, stop) or start > stop:
        raise ConversionError(f"tensor {name} ends before it starts: it is damaged, download it again")
    return start, stop


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _require_cover(places: dict[str, tuple[int, int]], size: int) -> None:
    """Raises `ConversionError` unless the tensors follow one another from the first byte to the last."""
    end = 0
    for name, (start, stop) in sorted(places.items(), key=lambda item: item[1]):
        if start != end:
            raise ConversionError(
                f"tensor {name} starts at byte {start}, not {end}: it is damaged, download it again"
            )
        end = stop
    if end != size:
        raise ConversionError(f"has {size} bytes of tensors where its header says {end}: download it again")


def _tensor(content: mmap.mmap, start: int, name: str, entry: Any) -> np.ndarray:
    kind, shape, (first, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(kind) is not str or kind not in DTYPES:
        raise ConversionError(f"tensor {name} has the dtype {str(kind)[:20]}, not one of {', '.join(DTYPES)}")
    if type(shape) is not list or len(shape) > MOST_AXES or not _are_counts(*shape):
        raise ConversionError(f"tensor {name} has no shape: it is damaged, download it again")
    dtype = DTYPES[kind]
    if math.prod(shape) * dtype.itemsize != stop - first:
        raise ConversionError(
            f"tensor {name} has {stop - first} bytes for {shape} {dtype}: download it again"
        )
    return np.frombuffer(content, dtype, math.prod(shape), start + first).reshape(shape)
