"""Sampling trajectories: an animation from noise to data, and a still figure."""

import contextlib
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32
from tqdm import tqdm

from lsgm_jax.arrays import Condition, Key, Params, coordinates
from lsgm_jax.conditioning.request import ConditionRequest
from lsgm_jax.data.pipeline import whole_split
from lsgm_jax.errors import DataError
from lsgm_jax.evaluation import plots, trajectory_plots
from lsgm_jax.processes.linear import Process, kernel
from lsgm_jax.sampling.failures import Failures
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.sampler import Sampler

POINTS, IMAGES = 3000, 36  # samples by default
BATCHES = {"points": 500, "images": 12}  # solved at a time
FINE = 400  # times at which points are known: enough for the roughness of stochastic paths to show
LARGE = 2.0  # a standard deviation, where that of the data is one
STRIP = 8  # times of a still of images, and samples
SECONDS, PAUSE = 4.0, 2.0  # the way, and the samples at its end

Ways = Float32[np.ndarray, "times n ..."]


def animate(
    run: Run,
    params: Params,
    *,
    count: int | None,
    frames: int,
    seed: int,
    label: str | None = None,
    prompt: str | None = None,
) -> None:
    """Writes paths.gif and paths.png into the run's folder.

    Args:
        count: samples; None for a number that fits the data.
        frames: frames of the animation.
        label, prompt: requested condition, see `Conditions.request`.

    Raises:
        ConfigError: if the model does not know the condition.
        NumericalError: if a sample is not finite or runs out of steps.
    """
    sampler, of_points = run.experiment.sampler, len(run.model.data_shape) == 1
    # Points are cheap: their paths are followed at more times than there are frames.
    stride = math.ceil(FINE / (frames - 1)) if of_points else 1
    # Noise takes shape late: the nearer to the data, the slower time runs.
    rest = np.linspace(1.0, 0.0, stride * (frames - 1) + 1, dtype=np.float32) ** 2
    times = sampler.t_min + (1.0 - sampler.t_min) * rest
    count = count or (POINTS if of_points else IMAGES)
    request = run.conditions.request(count, label=label, prompt=prompt)
    x, v = follow(run, params, sampler, times, count, seed, request)
    if of_points:
        way = _scaled(trajectory_plots.PlanePaths(times, x, v, _held_out(run)), run.model.process(params))
        drawn, still = trajectory_plots.plane_frames(way, frames), trajectory_plots.plane_still(way)
    else:
        drawn, still = _draw_images(times, x, run.model.labels)
    plots.save_png(run.workdir / "paths.png", still)
    shown = list(tqdm(drawn, total=frames, desc="frames", leave=False))
    trajectory_plots.save_gif(run.workdir / "paths.gif", shown, seconds=SECONDS, pause=PAUSE)


def follow(
    run: Run,
    params: Params,
    sampler: Sampler,
    times: Float32[np.ndarray, "times"],
    count: int,
    seed: int,
    request: ConditionRequest = lambda rows: None,
) -> tuple[Ways, Ways | None]:
    """Returns the trajectories of `count` samples: data at decreasing `times`, and velocities if the process has them.

    Raises:
        NumericalError: if a sample is not finite or runs out of steps.
    """
    batches = math.ceil(count / BATCHES["points" if len(run.model.data_shape) == 1 else "images"])
    size = math.ceil(count / batches)

    @jax.jit
    def solve(
        params: Params, key: Key, condition: Condition
    ) -> tuple[Array, tuple[Array, ...], Bool[Array, "batch"]]:
        z_1, k_decode = run.model.draw_noise(params, key, size, sampler)
        x, path = run.model.decode_path(params, z_1, k_decode, sampler, jnp.asarray(times), condition)
        return x, coordinates(path.states)[1:], path.solution.success

    keys = jax.random.split(jax.random.key(seed), batches)
    conditions = [request(np.arange(number * size, (number + 1) * size) % count) for number in range(batches)]
    solved = [
        jax.device_get(solve(params, key, condition))
        for key, condition in tqdm(list(zip(keys, conditions, strict=True)), desc="paths", leave=False)
    ]
    failures = functools.reduce(
        Failures.and_of, (Failures.among(success, x[-1]) for x, _, success in solved), Failures()
    )
    if failures.total:
        raise failures.error()
    joined = lambda parts: np.concatenate(list(parts), axis=1)[:, :count]
    x = joined(x for x, _, _ in solved)
    return x, joined(v for _, (v,), _ in solved) if solved[0][1] else None


def _scaled(way: trajectory_plots.PlanePaths, process: Process) -> trajectory_plots.PlanePaths:
    """Trajectories in units of the standard deviation at each time, where noise is far larger than the data."""
    signal, noise = kernel(process, jnp.asarray(way.times))
    std = np.sqrt(np.asarray(signal[:, 0] ** 2 + jnp.sum(noise[:, 0] ** 2, axis=-1)))[:, None, None]
    return way if std.max() < LARGE else way._replace(x=way.x / std, unit=" / standard deviation")


def _draw_images(times: np.ndarray, x: np.ndarray, labels: int) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """The frames, and the still."""
    columns = np.unique(np.round(np.linspace(0, len(times) - 1, STRIP)).astype(int))
    still = trajectory_plots.image_still(times[columns], x[columns, :STRIP], labels)
    return trajectory_plots.image_frames(times, x, labels), still


def _held_out(run: Run) -> np.ndarray | None:
    with contextlib.suppress(DataError):
        return whole_split(run.experiment.data, "test")
    return None
