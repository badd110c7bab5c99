"""Pictures completed: holes filled in, small images made large. What `lsgm inpaint` and `lsgm upscale` do."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from lsgm_jax.arrays import Images, Key, Latents
from lsgm_jax.conditioning.maps import nearest
from lsgm_jax.config.section import build
from lsgm_jax.data import pixels
from lsgm_jax.data.images import Layout, decode
from lsgm_jax.errors import ConfigError
from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.model import Model
from lsgm_jax.models.tasks import Inpainting, Masked, Upscaling
from lsgm_jax.nn.network import Params
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.masked import masked
from lsgm_jax.solvers.sampler import Sampler

Picture = Float32[np.ndarray, "height width channels"]
Pictures = Float32[np.ndarray, "batch height width _"]
Success = Bool[Array, "batch"]
Solve = Callable[[Model, Params, Sampler, Masked, Key], tuple[Images, Success]]


def read_picture(run: Run, path: pathlib.Path, what: str, *, shape: tuple[int, ...] | None = None) -> Picture:
    """An image file as the run's data have images, in [-1, 1].

    Args:
        what: it is, for messages.
        shape: (height, width, channels) that it has to have; None for that of the run's images.

    Raises:
        ConfigError: if it has other sides, or the run's data are no pictures.
        DataError: if it cannot be read.
    """
    data = build("data", run.config)
    if len(data.shape) != 3 or run.model.labels:
        raise ConfigError(
            f"samples of shape {data.shape} of this run are no pictures that could be completed"
        )
    height, width, channels = shape or data.shape
    layout = Layout(height=None, width=None, channels=channels)
    found = decode(path.expanduser().read_bytes(), layout, str(path))
    if found.shape[:2] != (height, width):
        sides = f"{found.shape[0]} x {found.shape[1]}"
        raise ConfigError(f"{path} has {sides} pixels: {what} has {height} x {width}, scale it first")
    return pixels.quantise(found, data.levels)


def read_mask(run: Run, path: pathlib.Path) -> Picture:
    """A mask of an image: 1 where the file is white, and is to be filled in, 0 where it is black.

    Raises:
        ConfigError: if it has other sides than the image, or nothing of it is white.
        DataError: if it cannot be read.
    """
    height, width, _ = build("data", run.config).shape
    white = read_picture(run, path, "the image that it masks", shape=(height, width, 1)) > 0.0
    if not white.any():
        raise ConfigError(f"{path} is black all over: paint white what is to be filled in")
    return white.astype(np.float32)


def read_small(run: Run, path: pathlib.Path) -> Picture:
    """An image to make large: of the sides of the run's latents.

    Raises:
        ConfigError: as `read_picture`, and for a model that was not trained for it.
        DataError: if it cannot be read.
    """
    if not _was_trained_for(run.model, Upscaling):
        raise ConfigError(
            f"config.conditioning.name={run.config.conditioning.name!r}: this model makes no small image large; "
            "train an LDM with config.conditioning.name='upscaling'"
        )
    shape = (*run.model.latent_shape[:2], run.model.data_shape[-1])
    return read_picture(run, path, "a small image for this model", shape=shape)


def inpaint(
    run: Run, params: Params, sampler: Sampler, x: Pictures, mask: Pictures, key: Key
) -> tuple[np.ndarray, np.ndarray]:
    """Images with their holes filled in, [batch, height, width, channels], and whether each solve succeeded.

    A model that was trained for it (`config.conditioning.name=inpainting`) is told image and mask. Any other is held to
    the known part of the latents before every step (see `masked`), which costs no training, and knows less. Either
    way only the holes are taken from the model.

    Args:
        x: images in [-1, 1].
        mask: 1 in the holes, 0 elsewhere.

    Raises:
        ConfigError: for a model that completes something else, or a solver that cannot be told a part.
    """
    model = run.model
    trained = _was_trained_for(model, Inpainting)
    if isinstance(model, LDM) and model.task is not None and not trained:
        raise ConfigError(
            f"config.conditioning.name={run.config.conditioning.name!r}: this model completes something else; "
            "train one with 'inpainting', or one that takes no images"
        )
    given = Masked(jnp.asarray(x), jnp.asarray(mask))
    try:
        filled, success = _fill(_told if trained else _held, model, params, sampler, given, key)
    except ValueError as error:
        raise ConfigError(f"config.solver: {error}") from error
    return np.asarray(filled), np.asarray(success)


def upscale(
    run: Run, params: Params, sampler: Sampler, small: Pictures, key: Key
) -> tuple[np.ndarray, np.ndarray]:
    """Large images of small ones, [batch, height, width, channels], and whether each solve succeeded."""
    large, success = _enlarge(run.model, params, sampler, jnp.asarray(small), key)
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
) -> tuple[Array, Success]:  # other sides than the small ones'
    x, solution = model.sample(params, key, len(small), sampler, small)
    return x, solution.success


def _was_trained_for(model: Model, task: type) -> bool:
    return isinstance(model, LDM) and isinstance(model.task, task)


def _told(model: Model, params: Params, sampler: Sampler, given: Masked, key: Key) -> tuple[Images, Success]:
    x, solution = model.sample(params, key, len(given.x), sampler, given)
    return x, solution.success


def _held(model: Model, params: Params, sampler: Sampler, given: Masked, key: Key) -> tuple[Images, Success]:
    k_encode, k_sample = jax.random.split(key)
    known = _latents(model, params, given.x * (1.0 - given.mask), k_encode)
    keep = nearest(1.0 - given.mask, *known.shape[1:3])
    holding = dataclasses.replace(sampler, method=masked(sampler.method, keep, known))
    x, solution = model.sample(params, k_sample, len(given.x), holding)
    return x, solution.success


def _latents(model: Model, params: Params, x: Images, key: Key) -> Latents:
    """What the model's solver solves for."""
    match model:
        case LDM():
            return model.latents(params, x, None)
        case LSGM():
            return model.vae.autoencode(params["vae"], x, key, train=False).latent.z_0
    return x
