"""Samples of a run, timed, and next to those of its VAE and to the test split."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from lsgm_jax.arrays import Condition, Key, Latents, Params, State
from lsgm_jax.conditioning.request import ConditionRequest
from lsgm_jax.data.pipeline import whole_split
from lsgm_jax.errors import DataError
from lsgm_jax.evaluation import plots
from lsgm_jax.models.protocol import Model
from lsgm_jax.sampling.failures import are_finite
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.sampler import Sampler, Solution
from lsgm_jax.training.devices import OverDevices, shared_count
from lsgm_jax.training.recipes.common import first_rows


@dataclasses.dataclass(frozen=True)
class Samples:
    """A batch of samples, and its cost.

    Attributes:
        first: number of its first sample among those that are drawn.
        x: samples [n, ...].
        solution: of their latents.
        seconds: of the solve, with everything compiled.
        compile_seconds: of the compilation, which the first batch pays for all.
    """

    first: int
    x: np.ndarray
    solution: Solution
    seconds: float
    compile_seconds: float


def sample(run: Run, params: Params, count: int, seed: int, request: ConditionRequest) -> Iterator[Samples]:
    """Draws `count` samples of the requested conditions, batch by batch, each in one compiled call over all devices.

    Batches have the size of `config.eval.batch_size`, so that memory is bounded. The first one has the seed's own key,
    every other its own.
    """
    model, sampler = run.model, run.experiment.sampler
    size = min(count, run.experiment.evaluation.batch_size)

    decode = decoder(model, sampler)
    draw = jax.jit(lambda params, key: model.draw_noise(params, key, size, sampler))
    key, compiled = jax.random.key(seed), None
    for first in tqdm(range(0, count, size), desc="samples", disable=count == size, leave=False):
        z_1, k_decode = draw(params, jax.random.fold_in(key, first // size) if first else key)
        rows = np.arange(first, first + size) % count  # surplus samples of the last batch are dropped
        given = first_rows((z_1, request(rows)), shared_count(size))
        start = time.monotonic()
        compiled = compiled or decode.compile(params, given, k_decode)
        begin = time.monotonic()
        x, solution = compiled(params, given, k_decode)
        seconds = time.monotonic() - begin
        kept = min(size, count - first)
        solution = solution._replace(z_0=solution.z_0[:kept], success=solution.success[:kept])
        yield Samples(first, x[:kept], solution, seconds, begin - start)


def decoder(model: Model, sampler: Sampler) -> OverDevices:
    """Returns the call (params, (z_1, condition), key) -> (x, solution) over all devices, not yet compiled."""

    def decode(params: Params, given: tuple[State, Condition], key: Key) -> tuple[Array, Solution]:
        z_1, condition = given
        return model.decode(params, z_1, key, sampler, condition)

    return OverDevices(decode)


def compile_sampling(
    run: Run, params: Params, count: int
) -> tuple[Callable[[Params, Key], tuple[Latents, Solution]], float]:
    """Returns the compiled call that draws `count` samples on one device, and the seconds of compilation."""
    condition = run.conditions.request(count)(np.arange(count))

    def draw(params: Params, key: Key) -> tuple[Latents, Solution]:
        return run.model.sample(params, key, count, run.experiment.sampler, condition)

    start = time.monotonic()
    compiled = jax.jit(draw).lower(params, jax.random.key(0)).compile()
    return compiled, time.monotonic() - start


def compare(run: Run, x: np.ndarray, seed: int) -> np.ndarray:
    """Returns one figure: the samples `x`, samples of the VAE, and the test split, where there are any.

    Images are no more than a batch.
    """
    panels = {}
    x = x if x.ndim == 2 else x[: run.experiment.evaluation.batch_size]
    if run.has_vae_stage:
        vae_params, _ = run.best(run.model.stages[0])
        vae: Any = run.model.autoencoder
        baseline = jax.jit(vae.sample, static_argnums=2)(vae_params, jax.random.key(seed), len(x))
        baseline = np.asarray(baseline)
        panels["VAE, Gaussian prior"] = baseline[are_finite(baseline)]
    panels[run.experiment.name.upper()] = x
    with contextlib.suppress(DataError):  # a converted run may be sampled without its data
        panels["test split"] = whole_split(run.experiment.data, "test", limit=len(x))
    drawn = {title: plots.picture(panel, run.model.labels) for title, panel in panels.items() if len(panel)}
    return plots.side_by_side(drawn)
