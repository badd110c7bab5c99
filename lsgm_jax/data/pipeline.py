"""Batches of samples, shuffled, sharded over processes and resumable; and whole splits with their labels."""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import grain
import jax
import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Float32, Int, Int32
from tqdm import tqdm

from lsgm_jax.data.captions import WHERE, Captions
from lsgm_jax.data.spec import Batch
from lsgm_jax.data.tokenizer import EncodedCaptions
from lsgm_jax.errors import DataError

Rows = TypeVar("Rows")  # a pytree of arrays, a row per sample
# Batches and threads of prefetching, where images are decoded as they are read; decoders release the GIL.
READ_AHEAD = min(16, 2 * (os.cpu_count() or 1))


@runtime_checkable
class Samples(Protocol):
    """Random access to the samples of one split."""

    @property
    def spec(self) -> "Data":
        """The data specification of the samples."""
        ...

    @property
    def in_memory(self) -> bool:
        """True if the samples are in memory, so that reading one costs next to nothing."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """The names of the labels 0, 1, ...; empty if there are none."""
        ...

    def __len__(self) -> int: ...

    def batch(
        self,
        indices: Int[np.ndarray, "batch"],
        rng: np.random.Generator | None = None,
        rows: slice = slice(None),
    ) -> Batch:
        """Returns {"x": float32 [rows of batch, ...]}.

        Args:
            indices: of the samples of a batch.
            rng: generator of the augmentations of training; None applies none.
            rows: rows of the batch that are returned. They do not depend on this argument: the augmentations of the
                whole batch are drawn, then sliced.
        """
        ...

    def label(self, index: int) -> int | None:
        """Returns the class of a sample, None if the data set has no classes."""
        ...

    def captions(self, index: int) -> Captions | None:
        """Returns the texts of a sample, at least one; None if the data set has no texts."""
        ...


@runtime_checkable
class Data(Protocol):
    """A data set as the data section of a config describes it."""

    @property
    def source(self) -> str:
        """The name of the data set."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples per step, over all processes."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        ...

    @property
    def bin_width(self) -> float:
        """The distance between neighbouring values of a pixel; 0 for continuous data."""
        ...

    def open(self, split: str, *, decode: bool = True) -> Samples:
        """Opens "train", "validation" or "test". Without `decode` samples are decoded on access."""
        ...


def training_batches(
    samples: Samples, seed: int, condition: np.ndarray | EncodedCaptions | None = None
) -> grain.DatasetIterator:
    """Returns an endless iterator of shuffled batches {"x": [batch / processes, ...]}, the rows of this process.

    Process p of P makes the p-th of P equal shards. The concatenated shards equal the batch of a single process, bit
    for bit. The iterator's `get_state` and `set_state` resume it exactly, on any number of processes: a batch with its
    augmentations is a function of `seed` and the index of the batch.

    Args:
        samples: the training split.
        seed: of the order and the augmentations.
        condition: an array [samples, ...], or texts from which one is drawn per sample and epoch. Batches then have
            a "condition" too.

    Raises:
        DataError: if there are fewer samples than a batch, or the processes cannot share it evenly.
    """
    data = samples.spec
    if len(samples) < data.batch_size:
        raise DataError(
            f"{len(samples)} training samples in {data.source} are fewer than a batch: "
            f"set config.data.batch_size to at most {len(samples)}"
        )
    order, rows = _Order(len(samples), data.batch_size, seed), _rows_of_process(data.batch_size)
    indices = grain.MapDataset.range(sys.maxsize).map(order.batch)

    def make(indices: Int[np.ndarray, "batch"], rng: np.random.Generator) -> dict[str, np.ndarray]:
        batch = samples.batch(indices, rng, rows)
        if isinstance(condition, EncodedCaptions):
            return batch | {"condition": condition.batch(indices, rng, rows)}
        return batch if condition is None else batch | {"condition": condition[indices[rows]]}

    # One call makes a whole batch: a Python call per sample would take longer than the work itself.
    batches = indices.random_map(make, seed=_derived(seed, 0))
    # A batch of decoded images takes less than a millisecond: threads would only compete with XLA for the cores.
    ahead = 0 if samples.in_memory else READ_AHEAD
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)))


@dataclasses.dataclass(frozen=True)
class _Order:
    """The order of the samples: epoch after epoch, each with another permutation.

    It equals grain's `seed(seed).shuffle().repeat().batch(size)`, which takes ten times as long: for points in the
    plane, longer than a training step.
    """

    samples: int
    size: int  # of a batch
    seed: int

    def batch(self, number: int) -> Int[np.ndarray, "batch"]:
        """Returns the indices of the samples of a batch."""
        first, count, seed = number * self.size, self.samples, _derived(self.seed, 1)
        indices = [
            index_shuffle(i % count, max_index=count - 1, seed=(seed + i // count) % 2**32, rounds=4)
            for i in range(first, first + self.size)
        ]
        return np.asarray(indices)


def _rows_of_process(batch_size: int) -> slice:
    processes, process = jax.process_count(), jax.process_index()
    if batch_size % processes:
        raise DataError(f"config.data.batch_size={batch_size} does not divide over {processes} processes")
    share = batch_size // processes
    return slice(process * share, (process + 1) * share)


@functools.cache
def _derived(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def whole_split(data: Data, split: str, limit: int | None = None) -> Float32[np.ndarray, "n ..."]:
    """Returns all samples (or the first `limit`) of "train", "validation" or "test", [n, ...]; images in [-1, 1].

    The result is deterministic: images are binarised with one fixed draw.
    """
    samples = data.open(split, decode=limit is None)
    count = len(samples) if limit is None else min(limit, len(samples))
    x = np.empty((count, *data.shape), np.float32)
    starts = range(0, count, 256)
    for start in tqdm(
        starts, desc=f"reading {split}", disable=samples.in_memory or count < 2000, leave=False
    ):
        indices = np.arange(start, min(start + 256, count))
        x[indices] = samples.batch(indices)["x"]
    return x


def split_labels(data: Data, split: str, limit: int | None = None) -> Int32[np.ndarray, "n"]:
    """Returns the labels of the samples of `whole_split`, from 0.

    Raises:
        DataError: if the data set has no labels.
    """
    samples = data.open(split, decode=False)
    count = len(samples) if limit is None else min(limit, len(samples))
    labels = [samples.label(index) for index in range(count)]
    if any(label is None for label in labels):
        raise DataError(
            f"{data.source} has no labels: set config.data.source to a data set that has, "
            "or to a folder with one sub-folder of images per class"
        )
    return np.asarray(labels, np.int32)


def class_names(data: Data) -> list[str] | None:
    """Returns the names of the labels 0, 1, ...; None if there are no labels."""
    return list(data.open("train", decode=False).classes) or None


def all_captions(data: Data, split: str, limit: int | None = None) -> list[Captions]:
    """Returns the texts of each sample of `whole_split`, at least one per sample.

    If the data set has no texts, the name of the class makes one.

    Raises:
        DataError: if a sample has neither a text nor a class.
    """
    samples = data.open(split, decode=False)
    count = len(samples) if limit is None else min(limit, len(samples))
    indices = tqdm(range(count), desc=f"reading texts of {split}", delay=1, leave=False)
    captions = [found for index in indices if (found := samples.captions(index)) is not None]
    if len(captions) < count:
        raise DataError(
            f"{data.source} has no texts: set config.data.source to a data set that has texts or labels, or to a "
            f"folder with {WHERE}, or with one sub-folder of images per class"
        )
    return captions


def split_captions(data: Data, split: str, limit: int | None = None) -> list[str]:
    """Returns one text for each sample of `whole_split`, the first if there are several.

    Raises:
        DataError: if a sample has neither a text nor a class.
    """
    return [texts[0] for texts in all_captions(data, split, limit)]


def padded_batches(x: Rows, batch_size: int) -> Iterator[tuple[Rows, int]]:
    """Cuts arrays with the same number of rows into batches of one size; the last one is padded by repetition.

    One size means one compilation. Yields each batch with its number of rows before padding.
    """
    count = len(jax.tree.leaves(x)[0])
    for start in range(0, count, batch_size):
        part = np.arange(start, min(start + batch_size, count))
        rows = np.resize(part, batch_size)
        yield jax.tree.map(lambda leaf, rows=rows: leaf[rows], x), len(part)
