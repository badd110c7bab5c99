"""The data section of a config: the images, and their preprocessing."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int, UInt
from tqdm import tqdm

from lsgm_jax.data import pixels
from lsgm_jax.data.captions import Captions, class_caption
from lsgm_jax.data.images import FITS, KINDS, Layout, decode
from lsgm_jax.data.sources import DATA_DIR, SPLIT_NAMES, open_split
from lsgm_jax.errors import DataError

IN_MEMORY_BYTES = 512 * 2**20
BINARISE = ("none", "dynamic")

Batch = dict[str, Float32[np.ndarray, "rows ..."]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set of images with its preprocessing and batch size.

    Attributes:
        source: a folder of images, or the name of a data set; see `open_split`.
        image_shape: (height, width, channels) of an image as the model sees it, padding included. Channels are 1 or 3;
            `decode` converts between grey and colour.
        levels: number of grey levels after quantisation, 2 to 256; number of classes of a label map, 2 to 65,536.
        batch_size: images per step, over all processes.
        splits: split expressions for training, validation and test.
        data_dir: root folder of prepared data sets.
        pad: zeros around the stored image, in pixels per side: black, or class 0. The border stays black when pixels
            are binarised.
        binarise: "none", or "dynamic" for pixels that are 1 with the probability of their grey level. Training draws
            them anew at every access, from the seed of the run and the index of the batch; whole splits (validation,
            test) have one fixed draw per image. Requires `levels` of 2.
        flip: whether training mirrors every image, left to right, with probability 1/2.
        fit: images of another size are refused ("exact"), scaled and cropped ("crop"), or scaled only ("resize").
        kind: "grey" for intensities, or "classes" for a label map with values 0 to `levels` - 1.
    """

    source: str
    image_shape: tuple[int, ...]
    levels: int = 256
    batch_size: int = 64
    splits: tuple[str, ...] = ("train", "validation", "test")
    data_dir: str = DATA_DIR
    pad: int = 0
    binarise: str = "none"
    flip: bool = False
    fit: str = "exact"
    kind: str = "grey"

    def __post_init__(self):
        for name, options in (("binarise", BINARISE), ("fit", FITS), ("kind", KINDS)):
            if getattr(self, name) not in options:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(options)}")
        self._check_shape()
        if len(self.splits) != 3:
            raise ValueError(f"splits={self.splits}: give one each for training, validation and test")
        most = 256 if self.kind == "grey" else 2**16
        if not 2 <= self.levels <= most:
            raise ValueError(f"levels={self.levels}: with kind={self.kind!r} there are 2 to {most}")
        if self.binarise != "none" and (self.levels, self.kind) != (2, "grey"):
            raise ValueError(
                f"binarise={self.binarise!r} makes two values of grey levels: set levels to 2, kind to 'grey'"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: give a positive number")

    def _check_shape(self) -> None:
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(f"image_shape={self.image_shape}: give (height, width, channels)")
        if self.image_shape[2] not in (1, 3):
            raise ValueError(f"image_shape={self.image_shape}: images are grey (1 channel) or colour (3)")
        if not 0 <= 2 * self.pad < min(self.image_shape[:2]):
            raise ValueError(
                f"pad={self.pad} leaves nothing of image_shape={self.image_shape}, which includes it"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.image_shape

    @property
    def bin_width(self) -> float:
        """The distance between neighbouring grey levels in [-1, 1]."""
        return 2.0 / (self.levels - 1)

    @property
    def layout(self) -> Layout:
        """The layout of an image before padding."""
        height, width, channels = self.image_shape
        return Layout(
            height=height - 2 * self.pad,
            width=width - 2 * self.pad,
            channels=channels,
            fit=self.fit,
            kind=self.kind,
        )

    def open(self, split: str, *, decode: bool = True) -> "Split":
        """Opens "train", "validation" or "test"; see `Split`."""
        return Split(self, split, decode=decode)


class Split:
    """The images of "train", "validation" or "test".

    With `decode` all images are decoded into memory if they fit; otherwise each is decoded on access.

    Raises:
        DataError: if there is no such split, or an image is damaged or of another shape.
    """

    def __init__(self, spec: DataSpec, split: str, *, decode: bool = True):
        self.spec = spec
        expression = spec.splits[SPLIT_NAMES.index(split)]
        self.source = open_split(spec.source, expression, spec.data_dir)
        self.decoded = None
        count = len(self.source)
        if decode and count * math.prod(spec.image_shape) <= IN_MEMORY_BYTES:
            # Small sets take a moment; a bar would only flash.
            indices = tqdm(range(count), desc=f"decoding {split}", disable=count < 5000, leave=False)
            self.decoded = np.stack([self._read(index) for index in indices])

    @property
    def in_memory(self) -> bool:
        """True if the images are decoded in memory."""
        return self.decoded is not None

    def __len__(self) -> int:
        return len(self.source)

    def batch(
        self,
        indices: Int[np.ndarray, "batch"],
        rng: np.random.Generator | None = None,
        rows: slice = slice(None),
    ) -> Batch:
        """Returns {"x": [rows of batch, height, width, channels]} in [-1, 1]; see `Samples`."""
        mine = indices[rows]
        images = self._stored(mine)
        if self.spec.flip and rng is not None:
            images = pixels.mirror(images, rng.random(len(indices))[rows] < 0.5)
        if self.spec.binarise == "dynamic":
            shape = images.shape[1:]
            if rng is None:
                limits = pixels.fixed_thresholds(mine, shape)
            else:
                limits = pixels.thresholds(rng, (len(indices), *shape))[rows]
            images = pixels.bits(images, limits)
        return {"x": self._values[pixels.pad(images, self.spec.pad)]}

    def label(self, index: int) -> int | None:
        """Returns the class of an image; None if the source has no classes."""
        return self.source.label(index)

    @property
    def classes(self) -> Sequence[str]:
        """The names of the labels; empty if there are none."""
        return self.source.classes

    def captions(self, index: int) -> Captions | None:
        """Returns the texts of an image, or one made from its class name; None without texts and classes."""
        written = self.source.captions(index)
        if written is not None:
            return written
        label = self.source.label(index)
        if label is None or not 0 <= label < len(self.classes):  # TFDS stores -1 for unknown labels
            return None
        return (class_caption(self.classes[label]),)

    @functools.cached_property
    def _values(self) -> Float32[np.ndarray, "stored"]:
        table = pixels.grey_values if self.spec.kind == "grey" else pixels.class_values
        return table(self.spec.levels)

    def _stored(self, indices: Int[np.ndarray, "rows"]) -> UInt[np.ndarray, "rows height width channels"]:
        if self.decoded is not None:
            return self.decoded[indices]
        return np.stack([self._read(int(index)) for index in indices])

    def _read(self, index: int) -> UInt[np.ndarray, "height width channels"]:
        record = self.source[index]
        image = decode(record.image, self.spec.layout, record.origin)
        if self.spec.kind == "classes" and image.max() >= self.spec.levels:
            raise DataError(
                f"{record.origin} has the class {image.max()}: config.data.levels={self.spec.levels} classes are "
                f"0 to {self.spec.levels - 1}"
            )
        return image
