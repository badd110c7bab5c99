"""Scores of a data split, image by image: the NELBO with its terms, and the ODE log-density of the latents."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lsgm_jax.arrays import Key
from lsgm_jax.data.pipeline import padded_batches
from lsgm_jax.models.bound import Batch
from lsgm_jax.models.network import Params
from lsgm_jax.objectives.times import Stratum

PerImage = Callable[[Params, Batch, Key, Stratum], dict[str, jax.Array]]


class Estimate(NamedTuple):
    """Mean over images and its standard error."""

    mean: float
    stderr: float


def score_images(
    per_image: PerImage,
    params: Params,
    x: np.ndarray,
    key: Key,
    *,
    draws: int = 1,
    batch_size: int = 64,
    label: str | None = None,
) -> dict[str, np.ndarray]:
    """Averages `per_image` over `draws` independent keys for every image of `x`.

    Args:
        per_image: a jitted function to dictionaries of [batch] arrays; draw i of n gets the stratum (i, n).
        label: name of the progress bar; None shows none.

    Returns:
        The same names with arrays [len(x)].
    """
    totals: dict[str, np.ndarray] = {}
    for part, values in _each_draw(per_image, params, x, key, draws, batch_size, label):
        for name, value in values.items():
            totals.setdefault(name, np.zeros(len(x)))[part] += value / draws
    return totals


def importance_bound(
    per_image: PerImage,
    params: Params,
    x: np.ndarray,
    key: Key,
    *,
    draws: int,
    batch_size: int = 64,
    label: str | None = None,
) -> np.ndarray:
    """-log of the mean importance weight over `draws` latents, nats, [len(x)]: a bound on -log p(x), tighter with each.

    Args:
        per_image: as in `score_images`; must return "log_weight".
    """
    totals = np.full(len(x), -np.inf)
    for part, values in _each_draw(per_image, params, x, key, draws, batch_size, label):
        totals[part] = np.logaddexp(totals[part], values["log_weight"])
    return math.log(draws) - totals


def _each_draw(
    per_image: PerImage,
    params: Params,
    x: np.ndarray,
    key: Key,
    draws: int,
    batch_size: int,
    label: str | None,
) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Values of every draw and batch, float64, with the part of the images that they are of."""
    jobs = [(draw, start) for draw in range(draws) for start in range(0, len(x), batch_size)]
    batches = list(padded_batches(x, batch_size))
    for draw, start in tqdm(jobs, desc=label, disable=label is None, leave=False):
        rows, count = batches[start // batch_size]
        k_batch = jax.random.fold_in(jax.random.fold_in(key, draw), start)
        values = per_image(params, Batch(jnp.asarray(rows)), k_batch, Stratum(draw, draws))
        yield (
            slice(start, start + count),
            {name: np.asarray(value[:count], np.float64) for name, value in values.items()},
        )


def estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error over images; the noise of the draws is part of the spread."""
    spread = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), float(spread))


def bits_per_dimension(nats: np.ndarray, dimensions: int) -> np.ndarray:
    """Nats per image as bits per pixel value."""
    return nats / (dimensions * math.log(2.0))
