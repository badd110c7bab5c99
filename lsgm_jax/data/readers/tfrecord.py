"""Reads TFRecord files of `tf.train.Example` without TensorFlow.

A record is the length of the data (8 bytes, little endian), its checksum (4), the data, and their checksum (4).
"""

import pathlib
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from lsgm_jax.bounded import AGAIN, check_size, damaged, reading
from lsgm_jax.data.readers.crc32c import masked_crc32c
from lsgm_jax.errors import DataError

HEADER = 12
FOOTER = 4
RECORD_BYTES = 2**28  # the published records of 1024 x 1024 pixels have 3 MB


def count_records(path: pathlib.Path) -> int:
    """Counts the records by their lengths, without reading the data.

    Raises:
        DataError: if the file is damaged, or ends within a record.
    """
    count, size = 0, path.stat().st_size
    with reading(path), path.open("rb") as file:
        while file.tell() < size:
            length = _length(file, size, path, count)
            file.seek(length + FOOTER, 1)
            count += 1
    return count


def read_records(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the data of each record.

    Raises:
        DataError: if a checksum does not match.
    """
    index, size = 0, path.stat().st_size
    with reading(path), path.open("rb") as file:
        while file.tell() < size:
            length = _length(file, size, path, index)
            data, footer = file.read(length), file.read(FOOTER)
            if masked_crc32c(data) != struct.unpack("<I", footer)[0]:
                raise damaged(path, f"the checksum of record {index} is off")
            yield data
            index += 1


def parse_example(data: bytes, origin: str) -> dict[str, Any]:
    """Parses a record to {feature: list of bytes, integers or floats}.

    Raises:
        DataError: if it is no `tf.train.Example`; it names the record, `origin`.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_generated_pb2

    messages: Any = tf_example_generated_pb2
    try:
        example = messages.Example.FromString(data)
    except DecodeError as error:
        raise DataError(f"{origin} is no tf.train.Example ({error}): {AGAIN}") from error
    kinds = {
        name: (feature, feature.WhichOneof("kind")) for name, feature in example.features.feature.items()
    }
    return {name: getattr(feature, kind).value if kind else [] for name, (feature, kind) in kinds.items()}


def _length(file: BinaryIO, size: int, path: pathlib.Path, index: int) -> int:
    """Returns the length of the data of the next record, which the file has."""
    header = file.read(HEADER)
    if len(header) < HEADER or masked_crc32c(header[:8]) != struct.unpack("<I", header[8:])[0]:
        raise damaged(path, "it is no TFRecord file, or ends within a record")
    (length,) = struct.unpack("<Q", header[:8])
    if length + FOOTER > size - file.tell():
        raise damaged(path, f"it ends within record {index}, which should have {length} bytes")
    return check_size(length, RECORD_BYTES, f"record {index} of {path}")
