"""What every reader gives: the splits of a source, as streams of images."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lsgm_jax.data.captions import Captions

Shape = tuple[int, int, int]


class Example(NamedTuple):
    """One image: decoded, uint8 [height, width, channels], or the bytes of an image file; and what to call it."""

    image: np.ndarray | bytes
    label: int | None
    origin: str
    captions: Captions = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """The images of one split, `count` of them; `read` starts from the first again."""

    count: int
    read: Callable[[], Iterator[Example]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a source holds.

    Attributes:
        shape: (height, width, channels) of every image; None where the files decide.
        splits: in the order they are to be written.
        classes: the names of the labels 0, 1, ...; empty if there are no labels.
        files: what was read, for checksums.
        captioned: whether images have texts.
    """

    shape: Shape | None
    splits: dict[str, Stream]
    classes: Sequence[str]
    files: Sequence[pathlib.Path]
    captioned: bool = False


def arrays(images: np.ndarray, labels: np.ndarray | None, origin: str) -> Iterator[Example]:
    """Examples of images [n, height, width, channels] and labels [n]."""
    for index, image in enumerate(images):
        label = None if labels is None else int(labels[index])
        yield Example(image, label, f"image {index} of {origin}")
