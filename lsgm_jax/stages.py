"""What a run trains, one stage after the other: an LSGM its VAE and then everything, an SGM its score."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Int

from lsgm_jax.arrays import Key, Latents, Scalar
from lsgm_jax.build import build, build_optimiser
from lsgm_jax.evaluation.nelbo import PerImage, score_images
from lsgm_jax.evaluation.pictures import picture
from lsgm_jax.models.bound import Batch, Bound
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.network import Aux, Params
from lsgm_jax.models.sgm import SGM
from lsgm_jax.objectives.kl import annealed
from lsgm_jax.objectives.times import Stratum
from lsgm_jax.schema import Config
from lsgm_jax.solvers.grids import Linear
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler
from lsgm_jax.training.loop import Stage
from lsgm_jax.training.parallel import over_devices

PREVIEW = 64  # samples in TensorBoard's pictures
VALIDATION_DRAWS = 4
# A preview needs to look right, not to be exact: twenty evaluations instead of a hundred.
PREVIEW_SAMPLER = Sampler(method=METHODS["Heun"](), steps=Linear(steps=10), t_min=1e-3)

Named = dict[str, jax.Array]
Count = Int[Array, ""]


def last_stage(model: LSGM | SGM) -> str:
    """Name of the stage whose parameters are the model's."""
    return "joint" if isinstance(model, LSGM) else "score"


def make_stages(config: Config, model: LSGM | SGM, validation: np.ndarray) -> list[Stage]:
    """The stages of a run, in order.

    Args:
        validation: the samples on which checkpoints are judged, [n, ...].
    """
    if isinstance(model, SGM):
        return [_score_stage(config, model, validation)]
    return [_vae_stage(config, model, validation), _joint_stage(config, model, validation)]


def _vae_stage(config: Config, model: LSGM, validation: np.ndarray) -> Stage:
    settings, vae = build("train", config), model.vae
    coefficient = functools.partial(annealed, start=settings.vae_kl_start, ramp=settings.vae_kl_steps)

    def loss(params: Params, batch: Batch, key: Key, step: Count) -> tuple[Scalar, Aux]:
        return vae.loss(params, batch, key, coefficient(step))

    return Stage(
        name="vae",
        init=lambda key, before: vae.init(key),
        loss=loss,
        optimiser=build_optimiser(config, "vae"),
        steps=settings.vae_steps,
        validate=_validator(vae_terms(model), validation, config.data.batch_size),
        draw=_drawer(lambda params, key: vae.sample(params, key, PREVIEW)),
    )


def _joint_stage(config: Config, model: LSGM, validation: np.ndarray) -> Stage:
    settings = build("train", config)
    coefficient = functools.partial(annealed, start=settings.kl_start, ramp=settings.kl_steps)

    def loss(params: Params, batch: Batch, key: Key, step: Count) -> tuple[Scalar, Aux]:
        return model.loss(params, batch, key, coefficient(step))

    return Stage(
        name="joint",
        init=lambda key, before: {"vae": before, **model.init_prior(key)},
        loss=loss,
        optimiser=build_optimiser(config, "joint"),
        steps=settings.steps,
        validate=_validator(model_terms(model), validation, config.data.batch_size),
        draw=_drawer(lambda params, key: model.sample(params, key, PREVIEW, PREVIEW_SAMPLER)[0]),
    )


def _score_stage(config: Config, model: SGM, validation: np.ndarray) -> Stage:
    def loss(params: Params, batch: Batch, key: Key, step: Count) -> tuple[Scalar, Aux]:
        return model.loss(params, batch, key)

    count = PREVIEW if len(model.data_shape) > 1 else 8 * PREVIEW
    return Stage(
        name="score",
        init=lambda key, before: model.init(key),
        loss=loss,
        optimiser=build_optimiser(config, "score"),
        steps=config.train.steps,
        validate=_validator(model_terms(model), validation, config.data.batch_size),
        draw=_drawer(lambda params, key: model.sample(params, key, count, PREVIEW_SAMPLER)[0]),
    )


# What is averaged over images


def vae_terms(model: LSGM) -> PerImage:
    """The bound of an LSGM's VAE with its Normal prior."""

    def terms(params: Params, batch: Batch, key: Key, stratum: Stratum) -> Named:
        return _named(model.vae.bound(params, batch, key))

    return terms


def model_terms(model: LSGM | SGM) -> PerImage:
    """The bound of the model."""

    def terms(params: Params, batch: Batch, key: Key, stratum: Stratum) -> Named:
        return _named(model.bound(params, batch, key, stratum))

    return terms


def _named(bound: Bound) -> Named:
    return {**bound._asdict(), "nelbo": bound.nelbo}


def _validator(per_image: PerImage, x: np.ndarray, batch_size: int) -> Callable[[Params], dict[str, float]]:
    compiled = over_devices(per_image)

    def validate(params: Params) -> dict[str, float]:
        # The same key every time: what changes between two validations is the model alone.
        key = jax.random.key(0)
        values = score_images(compiled, params, x, key, draws=VALIDATION_DRAWS, batch_size=batch_size)
        return {name: float(value.mean()) for name, value in values.items()}

    return validate


def _drawer(generate: Callable[[Params, Key], Latents]) -> Callable[[Params], np.ndarray]:
    compiled = jax.jit(generate)
    return lambda params: picture(np.asarray(compiled(params, jax.random.key(0))))
