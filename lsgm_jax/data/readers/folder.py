"""Image files of any kind in a folder, a zip file or a tar file, with their texts.

The names of their folders are the splits and classes.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence

from lsgm_jax.data.captions import FolderCaptions
from lsgm_jax.data.folders import (
    IMAGE_SUFFIXES,
    classes_by_name,
    image_names,
    mixed,
    split_by_name,
    without_common_folder,
)
from lsgm_jax.data.readers.archives import Archive, Folder, open_archive
from lsgm_jax.data.readers.contents import Contents, Example, Stream
from lsgm_jax.errors import DataError


def read_folder(source: pathlib.Path) -> Contents:
    """Reads all image files, in the order of `mixed`.

    `split_by_name` assigns the splits, `classes_by_name` the classes, and `FolderCaptions` the texts. A single
    outermost folder of an archive is ignored.

    Raises:
        DataError: if there are no images.
    """
    archive = open_archive(source)
    names = image_names(archive.names())
    if not names:
        raise DataError(f"no images in {source}: looked for {' '.join(sorted(IMAGE_SUFFIXES))}")
    original = {name: name for name in names} if isinstance(archive, Folder) else without_common_folder(names)
    short = sorted(original)
    classes, labels = classes_by_name(short)
    label_of = dict(zip(short, labels, strict=True)) if labels else {}
    texts, splits = FolderCaptions(archive, names), {}
    for split, part in split_by_name(mixed(short)).items():
        chosen = [label_of[name] for name in part] if labels else None
        read = functools.partial(encoded, archive, [original[name] for name in part], chosen, texts)
        splits[split] = Stream(count=len(part), read=read)
    files = archive.files([*names, *texts.files])
    return Contents(shape=None, splits=splits, classes=classes, files=files, captioned=bool(texts))


def encoded(
    archive: Archive,
    names: Sequence[str],
    labels: Sequence[int] | None = None,
    texts: FolderCaptions | None = None,
) -> Iterator[Example]:
    """Yields the encoded files, unchanged."""
    for index, name in enumerate(names):
        label = None if labels is None else labels[index]
        captions = texts.of(name) if texts else ()
        yield Example(archive.read(name), label, f"{name} in {archive.path}", captions)
