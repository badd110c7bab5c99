"""The result of every reader: the splits of a source as streams of images."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lsgm_jax.data.captions import Captions
from lsgm_jax.data.names import Skipped

Shape = tuple[int, int, int]


class Example(NamedTuple):
    """One image, as uint8 [height, width, channels] or an encoded file, and its name for errors (`origin`)."""

    image: np.ndarray | bytes
    label: int | None
    origin: str
    captions: Captions = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """The `count` images of one split; every call of `read` starts with the first image."""

    count: int
    read: Callable[[], Iterator[Example]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """The content of a source.

    Attributes:
        shape: (height, width, channels) of every image; None if the encoded files determine it.
        splits: the images by split, in the order of writing.
        classes: the names of the labels 0, 1, ...; empty if there are no labels.
        files: the files that were read, for checksums.
        captioned: whether images have texts.
        skipped: the files that are not read, with the reason.
    """

    shape: Shape | None
    splits: dict[str, Stream]
    classes: Sequence[str]
    files: Sequence[pathlib.Path]
    captioned: bool = False
    skipped: Sequence[Skipped] = ()


def arrays(images: np.ndarray, labels: np.ndarray | None, origin: str) -> Iterator[Example]:
    """Yields examples from images [n, height, width, channels] and labels [n]."""
    for index, image in enumerate(images):
        label = None if labels is None else int(labels[index])
        yield Example(image, label, f"image {index} of {origin}")
