"""Sets of images as sets of features: what a network that knows images says of each."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, UInt8

from lsgm_jax.data.pipeline import Data
from lsgm_jax.evaluation.cache import Arrays, Cache, accumulate, digest
from lsgm_jax.evaluation.moments import Moments, merge, moments_of
from lsgm_jax.evaluation.plots import to_bytes
from lsgm_jax.training.devices import OverDevices, data_mesh, place

Bytes = UInt8[Array, "batch height width channels"]
Features = Float[Array, "batch features"]
MOST_FEATURES = 50_000  # of a set that are held and kept one by one; mean and covariance are of all


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network from images, as files store them, to features.

    Attributes:
        name: what reports call figures made with it. It says what they can be compared with.
        identity: of its weights; figures of two identities are not comparable.
        width: features per image.
        params: what `apply` takes first.
        apply: pure; parameters and images, uint8, to features.
        classify: images to the classes that it takes them for, if it knows those of the data set.
    """

    name: str
    identity: str
    width: int
    params: Any
    apply: Callable[[Any, Bytes], Features]
    classify: Callable[[Any, Any], np.ndarray] | None = None


class ImageSet(NamedTuple):
    """What is known of a set of images: all a distance needs.

    Attributes:
        moments: mean and covariance of the features of all images.
        features: of the first `MOST_FEATURES`, float32.
        means: over all images, of what else is known of each.
    """

    moments: Moments
    features: Float[np.ndarray, "n d"]
    means: dict[str, float]


# Batch number i -> images in [-1, 1], [batch, h, w, c], always as many, and what else is known of each, [batch].
Batches = Callable[[int], tuple[np.ndarray, dict[str, np.ndarray]]]


def describe_images(
    extractor: Extractor,
    batches: Batches,
    count: int,
    batch_size: int,
    *,
    cache: Cache | None = None,
    label: str | None = None,
) -> ImageSet:
    """Features of `count` images, batch by batch, over all devices.

    Args:
        batches: where the images come from; of the last batch only the first are used.
        cache: where what there is so far is, so that an interrupted call goes on.
        label: name of the progress bar; None shows none.
    """
    params = place(data_mesh(), extractor.params)
    extract = OverDevices(extractor.apply)

    def advance(job: int, so_far: Arrays) -> None:
        images, known = batches(job)
        start = job * batch_size
        rows = extract(params, to_bytes(images))[: count - start]
        moments = merge(_moments(so_far), moments_of(rows)) if job else moments_of(rows)
        so_far.update({name: np.asarray(value) for name, value in moments._asdict().items()})
        held = so_far["features"][start : start + len(rows)]
        held[:] = rows[: len(held)]
        for name, values in known.items():
            total = so_far.get(f"total_{name}", np.zeros(()))
            so_far[f"total_{name}"] = np.asarray(total + values[: count - start].sum(dtype=np.float64))

    begin = {"features": np.zeros((min(count, MOST_FEATURES), extractor.width), np.float32)}
    done = accumulate(begin, math.ceil(count / batch_size), advance, cache=cache, label=label)
    totals = {name: total for name, total in done.items() if name.startswith("total_")}
    means = {name.removeprefix("total_"): float(total) / count for name, total in totals.items()}
    return ImageSet(_moments(done), done["features"], means)


def fingerprint(data: Data, split: str) -> str:
    """A hash of what a split is: how it is described, how many samples it has, and a few of them."""
    samples = data.open(split, decode=False)
    few = np.linspace(0, len(samples) - 1, num=16).astype(int)
    described = {**vars(data), "data_dir": None, "batch_size": None}  # where and how it is read, not what
    return digest([repr(described), len(samples), samples.batch(few)["x"]])


def _moments(so_far: Arrays) -> Moments:
    return Moments(int(so_far["size"]), so_far["mean"], so_far["scatter"])
