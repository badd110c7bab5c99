"""Writes small files in the published formats of data sets, from the descriptions of the formats."""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image
from tensorboardX.crc32c import crc32c
from tensorflow_datasets.proto import tf_example_generated_pb2


def grey(count, side=28, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), dtype=np.uint8)


def colour(count, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def labels(count, classes=10, seed=0):
    return np.random.default_rng(seed).integers(0, classes, count, dtype=np.uint8)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" and ".tar" not in path.name else content)
    return path


def idx(array):
    """Encodes an IDX file: two zeros, 8 for unsigned bytes, the number of axes, their lengths, the values."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def image_file(array, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=form)
    return file.getvalue()


def by_channel(images):
    """Returns [n, 3 h w], all red values before all green ones."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def python2_pickle(data, numbers):
    """Pickles {"data", "labels"} like cPickle of Python 2: protocol 2, text as byte strings."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    array += b"".join(b"J" + struct.pack("<i", length) for length in data.shape) + b"\x86"
    array += (
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    )
    array += b"T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([number]) for number in numbers) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + listed + b"u."


def python3_pickle(data, numbers):
    return pickle.dumps({"data": data, "labels": [int(number) for number in numbers], "batch_label": "one"})


def cifar_binary(images, numbers):
    return np.concatenate([numbers[:, None], by_channel(images)], axis=1).tobytes()


def cifar_jpegs(files, numbers):
    """Encodes an .npz of concatenated files, their offsets and labels."""
    content = io.BytesIO()
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(content, jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, labels=numbers)
    return content.getvalue()


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def tar(members):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, member in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(member)
            archive.addfile(info, io.BytesIO(member))
    return content.getvalue()


def zipped(members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


def masked(content):
    """Returns the checksum of a TFRecord, from an independent implementation."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)


def tfrecords(images, channels_first=False):
    """Encodes TFRecords of raw bytes and shape."""
    content = b""
    for image in images.transpose(0, 3, 1, 2) if channels_first else images:
        example = tf_example_generated_pb2.Example()
        example.features.feature["data"].bytes_list.value.append(image.tobytes())
        example.features.feature["shape"].int64_list.value.extend(image.shape)
        data = example.SerializeToString()
        length = struct.pack("<Q", len(data))
        content += length + masked(length) + data + masked(data)
    return content
