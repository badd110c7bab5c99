"""Samples of a run, timed, and next to those of its VAE and to the test split."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from lsgm_jax.arrays import Condition, Key, Latents, Params, State
from lsgm_jax.conditioning.request import ConditionRequest
from lsgm_jax.data.pipeline import whole_split
from lsgm_jax.errors import DataError
from lsgm_jax.evaluation import plots
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.sampler import Solution
from lsgm_jax.training.devices import OverDevices, shared_count
from lsgm_jax.training.recipes.common import first_rows


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples and their cost; `seconds` are those of the solve with everything compiled."""

    x: np.ndarray
    solution: Solution
    seconds: float
    compile_seconds: float


def sample(run: Run, params: Params, count: int, seed: int, request: ConditionRequest) -> Samples:
    """Draws `count` samples of the requested conditions in one compiled call over all devices."""
    model, sampler = run.model, run.experiment.sampler

    def decode(params: Params, given: tuple[State, Condition], key: Key) -> tuple[Array, Solution]:
        z_1, condition = given
        return model.decode(params, z_1, key, sampler, condition)

    draw = jax.jit(lambda params, key: model.draw_noise(params, key, count, sampler))
    z_1, k_decode = draw(params, jax.random.key(seed))
    given = first_rows((z_1, request(np.arange(count))), shared_count(count))
    start = time.monotonic()
    compiled = OverDevices(decode).compile(params, given, k_decode)
    begin = time.monotonic()
    x, solution = compiled(params, given, k_decode)
    seconds = time.monotonic() - begin
    drawn = solution._replace(z_0=solution.z_0[:count], success=solution.success[:count])
    return Samples(x[:count], drawn, seconds, begin - start)


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
    """Returns one figure: the samples `x`, samples of the VAE, and the test split, where there are any."""
    panels = {}
    if run.has_vae_stage:
        vae_params, _ = run.best(run.model.stages[0])
        vae: Any = run.model.autoencoder
        baseline = jax.jit(vae.sample, static_argnums=2)(vae_params, jax.random.key(seed), len(x))
        panels["VAE, Gaussian prior"] = np.asarray(baseline)
    panels[run.experiment.name.upper()] = x
    with contextlib.suppress(DataError):  # a converted run may be sampled without its data
        panels["test split"] = whole_split(run.experiment.data, "test", limit=len(x))
    drawn = {title: plots.picture(panel, run.model.labels) for title, panel in panels.items()}
    return plots.side_by_side(drawn)
