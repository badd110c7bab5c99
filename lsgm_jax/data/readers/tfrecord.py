"""Reads TFRecord files of `tf.train.Example` without TensorFlow.

A record is the length of the data (8 bytes, little endian), its checksum (4), the data, and their checksum (4).
"""

import pathlib
import struct
from collections.abc import Iterator
from typing import Any

from lsgm_jax.data.readers.crc32c import masked_crc32c
from lsgm_jax.errors import DataError

HEADER = 12
FOOTER = 4


def count_records(path: pathlib.Path) -> int:
    """Counts the records by their lengths, without reading the data.

    Raises:
        DataError: if the file is damaged, or ends within a record.
    """
    count, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            length = _length(file.read(HEADER), path)
            file.seek(length + FOOTER, 1)
            count += 1
        if file.tell() > size:
            raise _damaged(path, f"it ends within record {count - 1}")
    return count


def read_records(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the data of each record.

    Raises:
        DataError: if a checksum does not match.
    """
    with path.open("rb") as file:
        index = 0
        while header := file.read(HEADER):
            length = _length(header, path)
            data, footer = file.read(length), file.read(FOOTER)
            if len(footer) < FOOTER or masked_crc32c(data) != struct.unpack("<I", footer)[0]:
                raise _damaged(path, f"the checksum of record {index} is off")
            yield data
            index += 1


def parse_example(data: bytes) -> dict[str, Any]:
    """Parses a record to {feature: list of bytes, integers or floats}."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_generated_pb2

    messages: Any = tf_example_generated_pb2
    try:
        example = messages.Example.FromString(data)
    except DecodeError as error:
        raise DataError(f"a record is no tf.train.Example ({error})") from error
    features = example.features.feature
    return {name: getattr(feature, feature.WhichOneof("kind")).value for name, feature in features.items()}


def _length(header: bytes, path: pathlib.Path) -> int:
    if len(header) < HEADER or masked_crc32c(header[:8]) != struct.unpack("<I", header[8:])[0]:
        raise _damaged(path, "it is no TFRecord file, or ends within a record")
    return struct.unpack("<Q", header[:8])[0]


def _damaged(path: pathlib.Path, what: str) -> DataError:
    return DataError(f"{path} is damaged or incomplete ({what}): get it again")
