"""Inpainting and super-resolution of image files."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from lsgm_jax.arrays import Images, Key, Params
from lsgm_jax.bounded import read_file
from lsgm_jax.conditioning.images import Inpainting, Masked, Upscaling, nearest
from lsgm_jax.data import pixels
from lsgm_jax.data.images import Layout, decode
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.errors import ConfigError
from lsgm_jax.models.protocol import Model
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.masked import masked
from lsgm_jax.solvers.sampler import Sampler

Picture = Float32[np.ndarray, "height width channels"]
Pictures = Float32[np.ndarray, "batch height width _"]
Success = Bool[Array, "batch"]
Solve = Callable[[Model, Params, Sampler, Masked, Key], tuple[Images, Success]]


def read_picture(run: Run, path: pathlib.Path, what: str, *, shape: tuple[int, ...] | None = None) -> Picture:
    """Reads an image file as the run's data have images, in [-1, 1].

    Args:
        what: a name for it in messages.
        shape: required (height, width, channels); None for that of the run's images.

    Raises:
        ConfigError: if it has another height or width, or the run's data are no images.
        DataError: if it cannot be read.
    """
    data = run.experiment.data
    if not isinstance(data, DataSpec) or run.model.labels:
        raise ConfigError(f"samples of shape {data.shape} of this run are no images that could be restored")
    height, width, channels = shape or data.shape
    layout = Layout(height=None, width=None, channels=channels)
    found = decode(read_file(path.expanduser()), layout, str(path))
    if found.shape[:2] != (height, width):
        sides = f"{found.shape[0]} x {found.shape[1]}"
        raise ConfigError(f"{path} has {sides} pixels: {what} has {height} x {width}, scale it first")
    return pixels.quantise(found, data.levels)


def read_mask(run: Run, path: pathlib.Path) -> Picture:
    """Reads a mask: 1 where the file is white, a hole to fill in; 0 where it is black.

    Raises:
        ConfigError: if it has another height or width than the image, or no white pixel.
        DataError: if it cannot be read.
    """
    height, width, _ = run.experiment.data.shape
    white = read_picture(run, path, "the image that it masks", shape=(height, width, 1)) > 0.0
    if not white.any():
        raise ConfigError(f"{path} is black all over: paint white what is to be filled in")
    return white.astype(np.float32)


def read_small(run: Run, path: pathlib.Path) -> Picture:
    """Reads a small image for super-resolution, of the height and width of the run's latents.

    Raises:
        ConfigError: as `read_picture`, and for a model that was not trained for it.
        DataError: if it cannot be read.
    """
    if not isinstance(run.model.task, Upscaling):
        raise ConfigError(
            f"config.conditioning.name={run.config.conditioning.name!r}: this model does no super-resolution; "
            "train an LDM with config.conditioning.name='upscaling'"
        )
    shape = (*run.model.latent_shape[:2], run.model.data_shape[-1])
    return read_picture(run, path, "a small image for this model", shape=shape)


def inpaint(run: Run, params: Params, x: Pictures, mask: Pictures, key: Key) -> tuple[np.ndarray, np.ndarray]:
    """Returns images with their holes filled in, [batch, height, width, channels], and whether each solve succeeded.

    A model trained for inpainting (`config.conditioning.name=inpainting`) has image and mask as its condition. For any
    other the known part of the latents is put in place before every step (see `masked`): no training, but less
    coherent. Either way only the holes are taken from the model.

    Args:
        x: images in [-1, 1].
        mask: 1 in the holes, 0 elsewhere.

    Raises:
        ConfigError: for a model that restores something else, or a solver that cannot hold a part.
    """
    model, sampler = run.model, run.experiment.sampler
    trained = isinstance(model.task, Inpainting)
    if model.task is not None and not trained:
        raise ConfigError(
            f"config.conditioning.name={run.config.conditioning.name!r}: this model restores something else; "
            "train one with 'inpainting', or one that takes no images"
        )
    given = Masked(jnp.asarray(x), jnp.asarray(mask))
    try:
        filled, success = _fill(_given if trained else _held, model, params, sampler, given, key)
    except ValueError as error:
        raise ConfigError(f"config.solver: {error}") from error
    return np.asarray(filled), np.asarray(success)


def upscale(run: Run, params: Params, small: Pictures, key: Key) -> tuple[np.ndarray, np.ndarray]:
    """Returns large images of small ones, [batch, height, width, channels], and whether each solve succeeded."""
    large, success = _enlarge(run.model, params, run.experiment.sampler, jnp.asarray(small), key)
    return np.asarray(large), np.asarray(success)


# Many batches of one model and sampler compile once.
@functools.partial(jax.jit, static_argnames=("solve", "model", "sampler"))
def _fill(
    solve: Solve, model: Model, params: Params, sampler: Sampler, given: Masked, key: Key
) -> tuple[Images, Success]:
    restored, success = solve(model, params, sampler, given, key)
    return given.mask * restored + (1.0 - given.mask) * given.x, success


@functools.partial(jax.jit, static_argnames=("model", "sampler"))
def _enlarge(
    model: Model, params: Params, sampler: Sampler, small: Images, key: Key
) -> tuple[Array, Success]:  # larger than the small ones
    x, solution = model.sample(params, key, len(small), sampler, small)
    return x, solution.success


def _given(model: Model, params: Params, sampler: Sampler, given: Masked, key: Key) -> tuple[Images, Success]:
    x, solution = model.sample(params, key, len(given.x), sampler, given)
    return x, solution.success


def _held(model: Model, params: Params, sampler: Sampler, given: Masked, key: Key) -> tuple[Images, Success]:
    k_encode, k_sample = jax.random.split(key)
    known = model.encode_known(params, given.x * (1.0 - given.mask), k_encode)
    keep = nearest(1.0 - given.mask, *known.shape[1:3])
    holding = dataclasses.replace(sampler, method=masked(sampler.method, keep, known))
    x, solution = model.sample(params, k_sample, len(given.x), holding)
    return x, solution.success
