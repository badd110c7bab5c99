"""From samples to batches: shuffled, shared by processes, resumable; and whole splits with their labels."""

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

Rows = TypeVar("Rows")  # a tree of arrays, a row per sample
# Batches, and the threads that make them, where images are decoded as they are read; decoders let Python go on.
READ_AHEAD = min(16, 2 * (os.cpu_count() or 1))


@runtime_checkable
class Samples(Protocol):
    """Random access to the samples of one split."""

    @property
    def spec(self) -> "Data":
        """What describes them."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether a sample costs nothing to speak of."""
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
        """{"x": float32 [rows of batch, ...]}.

        Args:
            rng: what is random in training is drawn from it, and nothing is random without it.
            rows: those that are made. They are what they are in the whole batch: draws are for all of it, and cut.
        """
        ...

    def label(self, index: int) -> int | None:
        """The class of a sample; None if there are none."""
        ...

    def captions(self, index: int) -> Captions | None:
        """The texts of a sample, at least one; None if there are none."""
        ...


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


def training_batches(
    samples: Samples, seed: int, condition: np.ndarray | EncodedCaptions | None = None
) -> grain.DatasetIterator:
    """Endless shuffled batches; of each, {"x": [batch / processes, ...]}, the rows that this process contributes.

    Process p of P makes the p-th of P equal parts, and the parts together are the batch of a single process, bit for
    bit. The iterator's `get_state` and `set_state` resume it exactly, on any number of processes: what a batch holds,
    drawn numbers included, follows from `seed` and the number of the batch.

    Args:
        condition: what is known of every sample, [samples, ...], or texts to draw from, each time one of a sample's;
            batches then have their rows of it as "condition".

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

    # Samples are made a batch at a time: per sample, Python would take longer than the work.
    batches = indices.random_map(make, seed=_derived(seed, 0))
    # Of decoded images a batch takes less than a millisecond: threads would only compete with XLA for the cores.
    ahead = 0 if samples.in_memory else READ_AHEAD
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)))


@dataclasses.dataclass(frozen=True)
class _Order:
    """Which samples are in which batch: epoch after epoch, each in an order of its own.

    It is that of grain's `seed(seed).shuffle().repeat().batch(size)`, which takes ten times as long: for points in the
    plane, longer than a training step.
    """

    samples: int
    size: int  # of a batch
    seed: int

    def batch(self, number: int) -> Int[np.ndarray, "batch"]:
        """Indices of the samples."""
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
    """All samples (or the first `limit`) of "train", "validation" or "test", [n, ...]; images in [-1, 1].

    Nothing about them is random: binarised images are those of one fixed draw.
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
    """The labels of the samples that `whole_split` gives, from 0.

    Raises:
        DataError: if the samples have none.
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
    """What the labels 0, 1, ... stand for; None if there are none."""
    return list(data.open("train", decode=False).classes) or None


def all_captions(data: Data, split: str, limit: int | None = None) -> list[Captions]:
    """The texts of each of the samples that `whole_split` gives, at least one.

    Where none are written, the name of the class makes one.

    Raises:
        DataError: if the samples have none, or some have none.
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
    """One text for each of the samples that `whole_split` gives: where there are several, the first.

    Raises:
        DataError: if the samples have none, or some have none.
    """
    return [texts[0] for texts in all_captions(data, split, limit)]


def padded_batches(x: Rows, batch_size: int) -> Iterator[tuple[Rows, int]]:
    """Cuts arrays of as many rows each into batches of one size, the last filled up by repetition.

    One size means one compilation. With each batch comes its count of real rows.
    """
    count = len(jax.tree.leaves(x)[0])
    for start in range(0, count, batch_size):
        part = np.arange(start, min(start + batch_size, count))
        rows = np.resize(part, batch_size)
        yield jax.tree.map(lambda leaf, rows=rows: leaf[rows], x), len(part)
