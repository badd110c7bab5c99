"""Writes `.safetensors` files from numpy arrays, without the library. For tests only."""

import json
import struct

from lsgm_jax.interop.safetensors_file import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def entries(tensors):
    """The header of tensors one after the other."""
    start, header = 0, {}
    for name, tensor in tensors.items():
        stop = start + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    return header


def encoded(header, content):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def safetensors(tensors, **more):
    """The content of a file; `more` are further entries of the header."""
    return encoded({**more, **entries(tensors)}, b"".join(tensor.tobytes() for tensor in tensors.values()))
