"""Monte Carlo estimates of likelihood bounds over a data split: one value per image, averaged over draws."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import Key, Params
from lsgm_jax.data.pipeline import padded_batches
from lsgm_jax.evaluation.cache import Arrays, Cache, accumulate
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.time_densities import Stratum

# (params, batch, key, stratum) -> dictionary of [batch] arrays.
PerImage = Callable[[Params, Batch, Key, Stratum], Mapping[str, jax.Array | np.ndarray]]


class Estimate(NamedTuple):
    """Mean over images and its standard error."""

    mean: float
    stderr: float


def evaluate_images(
    per_image: PerImage,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    draws: int = 1,
    batch_size: int = 64,
    cache: Cache | None = None,
    label: str | None = None,
) -> Arrays:
    """Averages `per_image` over `draws` independent keys for every image of `batch`.

    Args:
        per_image: a compiled function that returns a dictionary of [batch] arrays; draw i of n gets the stratum (i, n).
            Wrap it in `OverDevices` to shard the batch over all devices.
        params: first argument of `per_image`.
        batch: host arrays of all images.
        key: base key; every draw and batch derives its own.
        draws: draws per image.
        batch_size: images per call. The last batch is padded.
        cache: file of partial averages, from which an interrupted call resumes.
        label: name of the progress bar; None hides it.

    Returns:
        A dictionary of the same names with arrays [images], float64.
    """
    jobs = _Jobs(per_image, params, batch, key, draws, batch_size)

    def advance(job: int, totals: Arrays) -> None:
        part, values = jobs.run(job)
        for name, value in values.items():
            totals.setdefault(name, np.zeros(len(batch.x)))[part] += value / draws

    return accumulate({}, len(jobs), advance, cache=cache, label=label)


def importance_bound(
    per_image: PerImage,
    params: Params,
    batch: Batch,
    key: Key,
    *,
    draws: int,
    batch_size: int = 64,
    cache: Cache | None = None,
    label: str | None = None,
) -> np.ndarray:
    """Computes the importance-weighted bound on -log p(x) (Burda et al. 2016) for every image.

    The bound is -log of the mean importance weight over `draws` latents. It is tighter with more latents. Arguments
    not listed are those of `evaluate_images`.

    Args:
        per_image: as in `evaluate_images`; must return "log_weight", nats.
        draws: latents per image.

    Returns:
        The bound in nats, [images].
    """
    jobs = _Jobs(per_image, params, batch, key, draws, batch_size)

    def advance(job: int, totals: Arrays) -> None:
        part, values = jobs.run(job)
        with np.errstate(invalid="ignore"):  # NaN stays NaN, and is counted
            totals["log_sum"][part] = np.logaddexp(totals["log_sum"][part], values["log_weight"])

    start = {"log_sum": np.full(len(batch.x), -np.inf)}
    totals = accumulate(start, len(jobs), advance, cache=cache, label=label)
    return math.log(draws) - totals["log_sum"]


@dataclasses.dataclass(frozen=True)
class _Jobs:
    """All pairs of a draw and a batch, numbered. A key depends only on its draw and batch, so that jobs can resume."""

    per_image: PerImage
    params: Params
    batch: Batch  # host arrays of all images
    key: Key
    draws: int
    batch_size: int

    def __len__(self) -> int:
        return self.draws * self._batches

    @property
    def _batches(self) -> int:
        return math.ceil(len(self.batch.x) / self.batch_size)

    def run(self, job: int) -> tuple[slice, Arrays]:
        """Returns the slice of the images in this job, and the values of one draw for them, float64."""
        draw, batch = divmod(job, self._batches)
        start = batch * self.batch_size
        images = jax.tree.map(lambda rows: rows[start : start + self.batch_size], self.batch)
        rows, count = next(padded_batches(images, self.batch_size))
        k_batch = jax.random.fold_in(jax.random.fold_in(self.key, draw), start)
        values = self.per_image(
            self.params, jax.tree.map(jnp.asarray, rows), k_batch, Stratum(draw, self.draws)
        )
        part = slice(start, start + count)
        return part, {name: np.asarray(value[:count], np.float64) for name, value in values.items()}


def estimate(values: np.ndarray) -> Estimate:
    """Computes mean and standard error over images; the spread includes the noise of the draws.

    Both are NaN if a value is not finite, and the standard error of a single image is.
    """
    if not np.isfinite(values).all():
        return Estimate(math.nan, math.nan)
    spread = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), float(spread))


def bits_per_dimension(nats: np.ndarray, dimensions: int) -> np.ndarray:
    """Converts nats per image to bits per dimension; `dimensions` is the number of pixel values."""
    return nats / (dimensions * math.log(2.0))
