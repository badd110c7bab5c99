"""What a run trains, one stage after the other: an LSGM its VAE and then everything, an SGM its score."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lsgm_jax.arrays import Key, Scalar, State
from lsgm_jax.build import build, build_optimiser
from lsgm_jax.data.pipeline import Samples, padded_batches
from lsgm_jax.evaluation.nelbo import PerImage, score_images
from lsgm_jax.evaluation.pictures import picture
from lsgm_jax.models.bound import Batch, Bound
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.network import Aux, Params
from lsgm_jax.models.sgm import SGM
from lsgm_jax.objectives.times import Stratum
from lsgm_jax.schema import Config
from lsgm_jax.solvers.grids import Linear
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, draw_noise
from lsgm_jax.training.devices import OverDevices, shared_count
from lsgm_jax.training.penalty import Penalty, first_memory, penalise
from lsgm_jax.training.spec import TrainSpec
from lsgm_jax.training.stage import Stage
from lsgm_jax.training.step import Average, Context, Loss

PREVIEW = 64  # samples in TensorBoard's pictures
VALIDATION_DRAWS = 4
# A preview needs to look right, not to be exact: twenty evaluations instead of a hundred.
PREVIEW_SAMPLER = Sampler(method=METHODS["Heun"](), steps=Linear(steps=10), t_min=1e-3)

INACTIVE_IMAGES = 4096  # on which is found what the channels of the latent hold

Named = dict[str, jax.Array]
PerChannel = Float[Array, "batch channels"]


class Images(NamedTuple):
    """What the stages see of the data beside their batches."""

    training: Samples | None  # None to measure a stage without running it
    validation: np.ndarray  # on which checkpoints are judged, [n, ...]


def last_stage(model: LSGM | SGM) -> str:
    """Name of the stage whose parameters are the model's."""
    return "joint" if isinstance(model, LSGM) else "score"


def make_stages(config: Config, model: LSGM | SGM, images: Images) -> list[Stage]:
    """The stages of a run, in order."""
    if isinstance(model, SGM):
        return [_score_stage(config, model, images)]
    joint = (_frozen_stage if config.train.freeze_vae else _joint_stage)(config, model, images)
    return [joint] if config.train.vae_from else [_vae_stage(config, model, images), joint]


def bare_stages(config: Config, model: LSGM | SGM) -> list[Stage]:
    """The stages without any data: to be measured, not to be run."""
    return make_stages(config, model, Images(None, np.zeros((0, *model.data_shape))))


def _vae_stage(config: Config, model: LSGM, images: Images) -> Stage:
    settings, vae, kl = build("train", config), model.vae, build("vae_kl", config)

    def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
        return vae.loss(params, batch, context.key, kl(context.step))

    return Stage(
        name="vae",
        init=lambda key, before: vae.init(key),
        optimiser=build_optimiser(config, "vae"),
        average=_average(settings, decay=settings.ema_decay if settings.average_vae else 0.0),
        steps=settings.vae_steps,
        validate=_validator(vae_terms(model), images.validation, config.data.batch_size),
        draw=_drawer(
            model,
            lambda key: jax.random.normal(key, (shared_count(PREVIEW), *model.latent_shape)),
            vae.decode,
            PREVIEW,
        ),
        **_penalised(loss, {"vae": build("vae_penalty", config)}, model),
    )


def _joint_stage(config: Config, model: LSGM, images: Images) -> Stage:
    settings, kl = build("train", config), build("joint_kl", config)

    def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
        return model.loss(params, batch, context.key, kl(context.step), context.average)

    penalties = {
        "vae": build("joint_vae_penalty", config),
        "prior": build("joint_prior_penalty", config),
    }
    return Stage(
        name="joint",
        average=_average(settings, skip=() if settings.average_vae else ("vae",)),
        **_of_an_lsgm(config, model, images),
        **_penalised(loss, penalties, model),
    )


def _frozen_stage(config: Config, model: LSGM, images: Images) -> Stage:
    """The second stage with the VAE as it is: the published third stage, and two-stage training."""

    def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
        return model.prior_loss(params, batch, context.key)

    return Stage(
        name="joint",
        average=_average(build("train", config), skip=("vae",)),
        **_of_an_lsgm(config, model, images),
        **_penalised(loss, {"prior": build("joint_prior_penalty", config)}, model),
    )


def _of_an_lsgm(config: Config, model: LSGM, images: Images) -> dict[str, Any]:
    """What the second stage is, whether or not it trains the VAE."""

    def adapt(params: Params) -> Params:
        if not model.inactive_kl or images.training is None:
            return params
        kl = _kl_per_channel(model, params["vae"], images.training, config.data.batch_size)
        return jax.jit(model.leave_inactive)(params, kl.astype(np.float32))

    return dict(
        init=lambda key, before: {"vae": before, **model.init_prior(key)},
        adapt=adapt,
        optimiser=build_optimiser(config, "joint"),
        steps=config.train.steps,
        validate=_validator(model_terms(model), images.validation, config.data.batch_size),
        draw=_of_the_model(model, PREVIEW),
    )


def _score_stage(config: Config, model: SGM, images: Images) -> Stage:
    def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
        return model.loss(params, batch, context.key)

    count = PREVIEW if len(model.data_shape) > 1 else 8 * PREVIEW
    return Stage(
        name="score",
        init=lambda key, before: model.init(key),
        optimiser=build_optimiser(config, "score"),
        average=_average(build("train", config)),
        steps=config.train.steps,
        validate=_validator(model_terms(model), images.validation, config.data.batch_size),
        draw=_of_the_model(model, count),
        **_penalised(loss, {"prior": build("penalty", config)}, model),
    )


def _average(settings: TrainSpec, decay: float | None = None, skip: tuple[str, ...] = ()) -> Average:
    decay = settings.ema_decay if decay is None else decay
    return Average(decay, settings.ema_warmup, skip)


def _penalised(loss: Loss, penalties: dict[str, Penalty], model: LSGM | SGM) -> dict[str, Any]:
    """A stage's loss and what it finds in the first step."""
    example = jax.eval_shape(lambda: Batch(jnp.zeros((1, *model.data_shape))))
    return dict(loss=penalise(loss, penalties), memory=first_memory(loss, penalties, example))


def _kl_per_channel(model: LSGM, params: Params, training: Samples, batch_size: int) -> np.ndarray:
    """KL(q || N(0, I)) of each channel of z_0, nats, mean over training images."""

    @OverDevices
    def held(params: Params, batch: Batch, key: Key) -> PerChannel:
        latent = model.vae.autoencode(params, batch.x, key, train=False).latent
        kl = latent.normal_cross_entropy - latent.entropy
        return jnp.sum(kl, axis=tuple(range(1, kl.ndim - 1)))

    count = min(len(training), INACTIVE_IMAGES)
    x = training.batch(np.arange(count))["x"]
    total = np.zeros(model.latent_shape[-1])
    for number, (rows, real) in enumerate(padded_batches(x, batch_size)):
        k_batch = jax.random.fold_in(jax.random.key(0), number)
        total += np.asarray(held(params, Batch(jnp.asarray(rows)), k_batch)[:real], np.float64).sum(axis=0)
    return total / count


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
    compiled = OverDevices(per_image)

    def validate(params: Params) -> dict[str, float]:
        # The same key every time: what changes between two validations is the model alone.
        key = jax.random.key(0)
        values = score_images(compiled, params, x, key, draws=VALIDATION_DRAWS, batch_size=batch_size)
        return {name: float(value.mean()) for name, value in values.items()}

    return validate


def _of_the_model(model: LSGM | SGM, count: int) -> Callable[[Params], np.ndarray]:
    """Pictures of the model's samples."""

    def noise(key: Key) -> State:
        return draw_noise(PREVIEW_SAMPLER, model.process, key, (shared_count(count), *model.latent_shape))

    def decode(params: Params, z_1: State, key: Key) -> Array:
        return model.decode(params, z_1, key, PREVIEW_SAMPLER)[0]

    return _drawer(model, noise, decode, count)


def _drawer(
    model: LSGM | SGM,
    noise: Callable[[Key], State],
    decode: Callable[[Params, Any, Key], Array],
    count: int,
) -> Callable[[Params], np.ndarray]:
    """Pictures of `count` samples: the same noise every time, decoded on all devices."""
    compiled = OverDevices(decode)

    def draw(params: Params) -> np.ndarray:
        k_noise, k_decode = jax.random.split(jax.random.key(0))
        return picture(compiled(params, noise(k_noise), k_decode)[:count], model.labels)

    return draw
