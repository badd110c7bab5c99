"""Image files of any kind in a folder, a zip file or a tar file, with their texts.

The names of their folders are the splits and classes.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence

from lsgm_jax.data.arrangement import arrange
from lsgm_jax.data.captions import FolderCaptions
from lsgm_jax.data.images import FILE_BYTES
from lsgm_jax.data.names import Skipped, summary
from lsgm_jax.data.readers.archives import Archive, open_archive
from lsgm_jax.data.readers.contents import Contents, Example, Stream
from lsgm_jax.errors import DataError, printable


def read_folder(source: pathlib.Path) -> Contents:
    """Reads all image files; see `arrange` for their splits, classes and order, and `FolderCaptions` for the texts.

    Raises:
        DataError: if there are no images, or their folders cannot be meant as splits.
    """
    archive = open_archive(source)
    found = arrange(archive.names(), source)
    names = [name for part in found.splits.values() for name in part]
    texts = FolderCaptions(archive, names)
    skipped = other_files(archive, found.skipped, texts)
    if not names:
        raise DataError(no_images(source, skipped))
    splits = {}
    for split, part in found.splits.items():
        labels = [found.labels[name] for name in part] if found.classes else None
        read = functools.partial(encoded, archive, part, labels, texts)
        splits[split] = Stream(count=len(part), read=read)
    files = archive.files([*sorted(names), *texts.files])
    return Contents(
        shape=None,
        splits=splits,
        classes=found.classes,
        files=files,
        captioned=bool(texts),
        skipped=skipped,
    )


def other_files(archive: Archive, skipped: Sequence[Skipped], texts: FolderCaptions) -> list[Skipped]:
    """Returns the files that are neither images nor texts of images."""
    read = set(texts.candidates)
    return sorted([*archive.skipped, *(file for file in skipped if file.name not in read)])


def no_images(source: pathlib.Path, skipped: Sequence[Skipped]) -> str:
    """Returns the message for a source without images."""
    there = f"skipped {summary(skipped)}" if skipped else "it is empty"
    return (
        f"no images in {printable(str(source))}: {there}; endings of images are .png, .jpg, .webp, .bmp, .gif, .tif, "
        ".jp2, .npy and their like"
    )


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
        origin = f"{printable(name)} in {printable(str(archive.path))}"
        yield Example(archive.read(name, FILE_BYTES), label, origin, captions)
