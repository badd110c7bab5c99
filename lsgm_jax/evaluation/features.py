"""Features of image sets, which FID, KID, precision and recall are computed from."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, UInt8

from lsgm_jax.data.pipeline import Data
from lsgm_jax.errors import NumericalError
from lsgm_jax.evaluation.cache import Arrays, Cache, accumulate, digest
from lsgm_jax.evaluation.moments import Moments, merge, moments_of
from lsgm_jax.evaluation.plots import to_bytes
from lsgm_jax.training.devices import OverDevices, data_mesh, place

Bytes = UInt8[Array, "batch height width channels"]
Features = Float[Array, "batch features"]
MOST_FEATURES = 50_000  # feature vectors stored per set; mean and covariance cover all images


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network that maps images, uint8, to feature vectors.

    Attributes:
        name: name in reports; it says what the metrics are comparable with.
        identity: hash of the weights; metrics of two identities are not comparable.
        width: features per image.
        params: first argument of `apply` and `classify`.
        apply: pure function of parameters and images [batch, h, w, c], uint8, to features [batch, width].
        classify: function of parameters and images to predicted classes [batch]; None if the network does not know the
            classes of the data set.
    """

    name: str
    identity: str
    width: int
    params: Any
    apply: Callable[[Any, Bytes], Features]
    classify: Callable[[Any, Any], np.ndarray] | None = None


class ImageSet(NamedTuple):
    """Statistics of a set of images, sufficient for all distances in `fid`.

    Attributes:
        moments: mean and covariance of the features of all images.
        features: features of the first `MOST_FEATURES` images, float32.
        means: means over all images of the other values per image, such as "nfe".
    """

    moments: Moments
    features: Float[np.ndarray, "n d"]
    means: dict[str, float]


# Batch number i -> images in [-1, 1], [batch, h, w, c], all batches of one size, and other values per image, [batch].
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
    """Computes the features of `count` images, batch by batch, over all devices.

    Args:
        extractor: the feature extractor.
        batches: returns the images of each batch; surplus images of the last batch are ignored.
        count: number of images.
        batch_size: images per batch.
        cache: file of partial results, from which an interrupted call resumes.
        label: name of the progress bar; None hides it.

    Raises:
        NumericalError: if images or features are not finite.
    """
    params = place(data_mesh(), extractor.params)
    extract = OverDevices(extractor.apply)

    def advance(job: int, results: Arrays) -> None:
        images, others = batches(job)
        start = job * batch_size
        rows = extract(params, to_bytes(images))[: count - start]
        if not np.isfinite(rows).all():
            raise NumericalError(f"features by {extractor.name} are not finite: its weights are no good")
        moments = merge(_moments(results), moments_of(rows)) if job else moments_of(rows)
        results.update({name: np.asarray(value) for name, value in moments._asdict().items()})
        stored = results["features"][start : start + len(rows)]
        stored[:] = rows[: len(stored)]
        for name, values in others.items():
            total = results.get(f"total_{name}", np.zeros(()))
            results[f"total_{name}"] = np.asarray(total + values[: count - start].sum(dtype=np.float64))

    begin = {"features": np.zeros((min(count, MOST_FEATURES), extractor.width), np.float32)}
    done = accumulate(begin, math.ceil(count / batch_size), advance, cache=cache, label=label)
    totals = {name: total for name, total in done.items() if name.startswith("total_")}
    means = {name.removeprefix("total_"): float(total) / count for name, total in totals.items()}
    return ImageSet(_moments(done), done["features"], means)


def fingerprint(data: Data, split: str) -> str:
    """Returns a hash that identifies a split: its description, its number of samples and 16 of them."""
    samples = data.open(split, decode=False)
    few = np.linspace(0, len(samples) - 1, num=16).astype(int)
    described = {**vars(data), "data_dir": None, "batch_size": None}  # these do not change the images
    return digest([repr(described), len(samples), samples.batch(few)["x"]])


def _moments(results: Arrays) -> Moments:
    return Moments(int(results["size"]), results["mean"], results["scatter"])
