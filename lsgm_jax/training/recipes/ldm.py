"""The stages of an LDM: its first stage against a discriminator, then the prior of latents that stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lsgm_jax.arrays import Images, Key, Scalar, sum_per_sample
from lsgm_jax.config.build_autoencoders import build_adversarial_training
from lsgm_jax.config.build_running import build_optimiser
from lsgm_jax.config.registry import Config
from lsgm_jax.config.section import build
from lsgm_jax.models.first_stage import AdversarialTraining, psnr
from lsgm_jax.models.ldm import FROZEN, LDM
from lsgm_jax.nn.network import Aux, Params
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.training.devices import shared_count
from lsgm_jax.training.logs import warn
from lsgm_jax.training.recipes.parts import (
    PREVIEW,
    Data,
    Named,
    drawer,
    ema,
    first_rows,
    model_drawer,
    model_terms,
    validator,
)
from lsgm_jax.training.stage import Stage
from lsgm_jax.training.step import EMA, Context


def ldm_stages(config: Config, model: LDM, data: Data) -> list[Stage]:
    """In order; without the first one for a first stage of another run."""
    prior = _prior_stage(config, model, data)
    return [prior] if config.train.first_stage_from else [_first_stage(config, model, data), prior]


def _first_stage(config: Config, model: LDM, data: Data) -> Stage:
    settings, training = build("train", config), build_adversarial_training(config, model.first_stage)

    def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
        return training.loss(params, batch, context.key, context.step)

    def terms(params: Params, batch: Batch, key: Key, stratum: Stratum) -> Named:
        return _reconstruction_terms(training, params["first_stage"], batch.x, key)

    def beside(params: Params, x: Images, key: Key) -> Array:
        """Images and their reconstructions in turns."""
        x_hat = model.first_stage.autoencode(params["first_stage"], x, key).x_hat
        return jnp.stack([x, x_hat], axis=1).reshape(-1, *x.shape[1:])

    def adapt(params: Params) -> Params:
        """The parameters; this is where training begins."""
        if training.perceptual is None and training.perceptual_weight:
            warn(
                "no perceptual weights, config.perceptual.weights: "
                "the first stage's error is in absolute values alone (docs/howto/ldm.md)"
            )
        return params

    decay = settings.ema_decay if settings.ema_first_stage else 0.0
    return Stage(
        name="first_stage",
        init=lambda key, before: training.init(key),
        adapt=adapt,
        loss=loss,
        optimiser=build_optimiser(config, "first_stage"),
        ema=EMA(decay, settings.ema_warmup, skip=("discriminator",)),
        steps=settings.first_stage_steps,
        validate=validator(terms, data.validation, config.data.batch_size, draws=1),
        judged_by="reconstruction",
        draw=drawer(
            model, lambda key: first_rows(data.validation.x, shared_count(PREVIEW // 2)), beside, PREVIEW
        ),
    )


def _reconstruction_terms(training: AdversarialTraining, params: Params, x: Images, key: Key) -> Named:
    """Of every image: its error (mean over numbers, perceptual distance included), that in absolute value, and dB."""
    x_hat = training.first_stage.autoencode(params, x, key).x_hat
    mean = lambda numbers: sum_per_sample(numbers) / x[0].size
    return {
        "reconstruction": mean(training.error(x, x_hat)),
        "absolute_error": mean(jnp.abs(x - x_hat)),
        "psnr": psnr(x, x_hat),
    }


def _prior_stage(config: Config, model: LDM, data: Data) -> Stage:
    def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
        return model.loss(params, batch, context.key)

    def init(key: Key, before: Params | None) -> Params:
        assert before is not None
        return model.init_prior(before["first_stage"], key)

    def adapt(params: Params) -> Params:
        """The latents' scale, from the first batch of images in their stored order."""
        if data.training is None:
            return params
        x = data.training.batch(np.arange(min(len(data.training), config.data.batch_size)))["x"]
        return jax.jit(model.adopt_scale)(params, jnp.asarray(x), jax.random.key(config.seed))

    return Stage(
        name="prior",
        init=init,
        adapt=adapt,
        loss=loss,
        optimiser=build_optimiser(config, "prior"),
        ema=ema(build("train", config), skip=FROZEN),
        steps=config.train.steps,
        validate=validator(model_terms(model), data.validation, config.data.batch_size),
        draw=model_drawer(model, data, PREVIEW),
    )
