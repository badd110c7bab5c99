"""From a source of images to batches: decoded, quantised, shuffled, sharded by process, resumable."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from tqdm import tqdm

from lsgm_jax.data.sources import SPLIT_NAMES, DataError, open_split

IN_MEMORY_BYTES = 512 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which images, on how many grey levels, in what batches.

    Attributes:
        source: a TFDS name or a folder of images.
        image_shape: (height, width, channels) that every image must have.
        levels: grey levels the images are reduced to, 2 to 256.
        batch_size: images per step, over all processes.
        splits: TFDS split expressions for training, validation and test.
        data_dir: where TFDS keeps prepared data sets.
    """

    source: str
    image_shape: tuple[int, ...]
    levels: int = 256
    batch_size: int = 64
    splits: tuple[str, ...] = ("train", "validation", "test")
    data_dir: str = "~/.cache/lsgm_jax"

    def __post_init__(self):
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(f"image_shape={self.image_shape}: give (height, width, channels)")
        if len(self.splits) != 3:
            raise ValueError(f"splits={self.splits}: give one each for training, validation and test")
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels={self.levels}: an 8-bit image has 2 to 256 grey levels")
        if self.batch_size < 1 or self.batch_size % jax.process_count():
            raise ValueError(
                f"batch_size={self.batch_size} does not divide over {jax.process_count()} processes"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.image_shape

    @property
    def bin_width(self) -> float:
        """Distance of the grey levels in [-1, 1]."""
        return 2.0 / (self.levels - 1)

    def open(self, split: str, *, decode: bool = True) -> "Split":
        """The images of "train", "validation" or "test"; see `Split`."""
        return Split(self, split, decode=decode)


def quantise(image: np.ndarray, levels: int) -> np.ndarray:
    """Reduces uint8 values to `levels` grey levels and maps them to [-1, 1], float32."""
    steps = image.astype(np.int32) * levels // 256
    return (2.0 * steps / (levels - 1) - 1.0).astype(np.float32)


class Split:
    """The images of "train", "validation" or "test", checked and quantised.

    With `decode` they are decoded at once into memory, if they fit; otherwise each when it is asked for.

    Raises:
        DataError: if there is nothing to read, or an image is broken or of another shape.
    """

    def __init__(self, spec: DataSpec, split: str, *, decode: bool = True):
        self.spec = spec
        expression = spec.splits[SPLIT_NAMES.index(split)]
        self.source = open_split(spec.source, expression, spec.data_dir)
        self.decoded = None
        count = len(self.source)
        if decode and count * math.prod(spec.image_shape) <= IN_MEMORY_BYTES:
            # Small sets take no time to speak of; a bar would only flash.
            indices = tqdm(range(count), desc=f"decoding {split}", disable=count < 5000, leave=False)
            self.decoded = np.stack([self._read(index) for index in indices])

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded."""
        return self.decoded is not None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image = self._read(index) if self.decoded is None else self.decoded[index]
        return {"x": quantise(image, self.spec.levels)}

    def _read(self, index: int) -> np.ndarray:
        record: dict[str, Any] = self.source[index]
        image = record["image"]
        if image.shape != tuple(self.spec.image_shape):
            origin = record.get("path", f"image {index} of {self.spec.source}")
            raise DataError(
                f"{origin} has shape {image.shape}, not {tuple(self.spec.image_shape)}: "
                "resize the images or set config.data.image_shape"
            )
        return image


@runtime_checkable
class Samples(Protocol):
    """Random access to samples {"x": float32 array} of one split."""

    @property
    def spec(self) -> "Data":
        """What describes them."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether a sample costs nothing to speak of."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


@runtime_checkable
class Data(Protocol):
    """What a config's data section describes."""

    @property
    def source(self) -> str:
        """What to call it."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples per step, over all processes."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        ...

    @property
    def bin_width(self) -> float:
        """Distance of the values a sample can have; 0 for continuous ones."""
        ...

    def open(self, split: str, *, decode: bool = True) -> Samples:
        """The samples of "train", "validation" or "test"; without `decode` each is made when it is asked for."""
        ...


def training_batches(samples: Samples, seed: int) -> grain.DatasetIterator:
    """Endless shuffled batches {"x": [batch, ...]} of this process's share of the samples.

    The iterator's `get_state` and `set_state` resume it exactly.

    Raises:
        DataError: if there are fewer samples than a batch.
    """
    data = samples.spec
    if len(samples) < data.batch_size:
        raise DataError(
            f"{len(samples)} training samples in {data.source} are fewer than a batch: "
            f"set config.data.batch_size to at most {len(samples)}"
        )
    mine = slice(jax.process_index(), None, jax.process_count())
    dataset = grain.MapDataset.source(samples).slice(mine).seed(seed).shuffle().repeat()
    dataset = dataset.batch(data.batch_size // jax.process_count(), drop_remainder=True)
    # Batching arrays takes microseconds: threads would only compete with XLA for the cores.
    threads = 0 if samples.in_memory else 8
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads)))


def whole_split(data: Data, split: str, limit: int | None = None) -> np.ndarray:
    """All samples (or the first `limit`) of "train", "validation" or "test", [n, ...]; images in [-1, 1]."""
    samples = data.open(split, decode=limit is None)
    count = len(samples) if limit is None else min(limit, len(samples))
    return np.stack([samples[index]["x"] for index in range(count)])


def padded_batches(x: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cuts `x` into batches of one size, the last filled up by repetition, each with its count of real rows.

    One size means one compilation.
    """
    for start in range(0, len(x), batch_size):
        part = x[start : start + batch_size]
        yield np.resize(part, (batch_size, *x.shape[1:])), len(part)


def split_labels(data: Data, split: str, limit: int | None = None) -> np.ndarray:
    """Class labels of all samples (or the first `limit`) of "train", "validation" or "test", int32 [n].

    Raises:
        DataError: if the data set knows none.
    """
    source = getattr(data.open(split, decode=False), "source", None)
    if source is None or "label" not in source[0]:
        raise DataError(f"{data.source} has no labels: use a data set that has")
    count = len(source) if limit is None else min(limit, len(source))
    return np.array([source[index]["label"] for index in range(count)], np.int32)
