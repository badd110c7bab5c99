"""CelebA-HQ at 256 x 256 (Karras et al. 2018), from image files, one array, or TFRecords.

If the source has no folders for its splits, the first nine tenths are for training: 27,000 of 30,000 images.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from lsgm_jax.bounded import AGAIN, shown
from lsgm_jax.data.arrangement import image_names, splits_by_folder
from lsgm_jax.data.names import natural
from lsgm_jax.data.readers.archives import Archive, open_archive
from lsgm_jax.data.readers.contents import Contents, Example, Stream, arrays
from lsgm_jax.data.readers.folder import encoded
from lsgm_jax.data.readers.tfrecord import count_records, parse_example, read_records
from lsgm_jax.errors import DataError
from lsgm_jax.numpy_files import map_npy

SHAPE = (256, 256, 3)


def read_celebahq256(source: pathlib.Path) -> Contents:
    """Reads an .npy file [n, 256, 256, 3], TFRecord files, or image files in a folder or a zip file.

    Raises:
        DataError: if `source` is none of them.
    """
    archive = open_archive(source)
    records = [name for name in archive.names() if name.endswith((".tfrecord", ".tfrecords"))]
    if source.suffix == ".npy":
        splits, names = _of_array(source), [source.name]
    elif records:
        splits, names = _of_records(archive, records), records
    else:
        names = image_names(archive.names())
        splits = _of_files(archive, names)
    return Contents(shape=SHAPE, splits=splits, classes=(), files=archive.files(names))


def _of_files(archive: Archive, names: list[str]) -> dict[str, Stream]:
    if not names:
        raise DataError(f"no images, .npy or TFRecord files of CelebA-HQ in {archive.path}")
    splits = splits_by_folder(names, archive.path) or _cut(names)
    read = {split: functools.partial(encoded, archive, part) for split, part in splits.items()}
    return {split: Stream(count=len(part), read=read[split]) for split, part in splits.items()}


def _of_array(path: pathlib.Path) -> dict[str, Stream]:
    images = map_npy(path)
    if images.dtype != np.uint8 or images.shape[1:] != SHAPE:
        raise DataError(f"{path} has {images.dtype} {list(images.shape)}, not uint8 {['n', *SHAPE]}")
    cut = _training(len(images))
    slices = {"train": slice(0, cut), "validation": slice(cut, None)}
    return {
        split: Stream(
            count=len(images[rows]),
            read=functools.partial(arrays, images[rows], None, f"{split} in {path.name}"),
        )
        for split, rows in slices.items()
    }


def _of_records(archive: Archive, names: list[str]) -> dict[str, Stream]:
    if not archive.path.is_dir():
        raise DataError(f"{archive.path} has TFRecord files in it: unpack it and give the folder")
    counts = {name: count_records(archive.files([name])[0]) for name in names}
    if (splits := splits_by_folder(names, archive.path)) is not None:
        return {
            split: Stream(count=sum(counts[n] for n in part), read=functools.partial(_records, archive, part))
            for split, part in splits.items()
        }
    names, total = sorted(names, key=natural), sum(counts.values())
    cut = _training(total)
    return {
        split: Stream(count=stop - start, read=functools.partial(_records, archive, names, start, stop))
        for split, start, stop in (("train", 0, cut), ("validation", cut, total))
    }


def _cut(names: list[str]) -> dict[str, list[str]]:
    cut = _training(len(names))
    return {"train": names[:cut], "validation": names[cut:]}


def _training(count: int) -> int:
    return count - count // 10


def _records(
    archive: Archive, names: Sequence[str], start: int = 0, stop: int | None = None
) -> Iterator[Example]:
    """Yields examples `start` to `stop`, counted over all files."""
    position = 0
    for path in archive.files(names):
        for index, data in enumerate(read_records(path)):
            if position >= start and (stop is None or position < stop):
                origin = f"record {index} of {path.name}"
                yield Example(_pixels(data, origin), None, origin)
            position += 1


def _pixels(record: bytes, origin: str) -> np.ndarray:
    """Decodes raw bytes with their shape, whose channels come first (Karras et al.) or last (Kingma and Dhariwal)."""
    features = parse_example(record, origin)
    if "data" not in features or "shape" not in features:
        listed = shown(", ".join(sorted(features)))
        raise DataError(f"{origin} has the features {listed}, not 'data' and 'shape': {AGAIN}")
    shape, data = tuple(features["shape"]), features["data"]
    size = len(data[0]) if len(data) == 1 and isinstance(data[0], bytes) else 0
    if shape not in (SHAPE, (3, 256, 256)) or size != 3 * 256 * 256:
        raise DataError(f"{origin} has {size} bytes of shape {shown(list(shape))}, not 256 x 256 in colour")
    pixels = np.frombuffer(data[0], np.uint8).reshape(shape)
    return pixels if shape == SHAPE else pixels.transpose(1, 2, 0)
