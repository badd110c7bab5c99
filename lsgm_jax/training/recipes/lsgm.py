"""The stages of an LSGM: its VAE, then everything; or the prior alone on a VAE that stays as it is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lsgm_jax.arrays import Key, Scalar
from lsgm_jax.config.build_running import build_optimiser
from lsgm_jax.config.registry import Config
from lsgm_jax.config.section import build
from lsgm_jax.data.pipeline import Samples, padded_batches
from lsgm_jax.evaluation.estimators import PerImage
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.nn.network import Aux, Params
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.training.devices import OverDevices, shared_count
from lsgm_jax.training.recipes.parts import (
    PREVIEW,
    Data,
    Named,
    drawer,
    ema,
    model_drawer,
    model_terms,
    named,
    penalised,
    validator,
)
from lsgm_jax.training.stage import Stage
from lsgm_jax.training.step import Context

INACTIVE_IMAGES = 4096  # on which is found what the channels of the latent hold

PerChannel = Float[Array, "batch channels"]


def lsgm_stages(config: Config, model: LSGM, data: Data) -> list[Stage]:
    """In order; without the first one for a VAE of another run."""
    joint = (_frozen_stage if config.train.freeze_vae else _joint_stage)(config, model, data)
    return [joint] if config.train.vae_from else [_vae_stage(config, model, data), joint]


def _vae_stage(config: Config, model: LSGM, data: Data) -> Stage:
    settings, vae, kl = build("train", config), model.vae, build("vae_kl", config)

    def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
        return vae.loss(params, batch, context.key, kl(context.step))

    return Stage(
        name="vae",
        init=lambda key, before: vae.init(key),
        optimiser=build_optimiser(config, "vae"),
        ema=ema(settings, decay=settings.ema_decay if settings.ema_vae else 0.0),
        steps=settings.vae_steps,
        validate=validator(vae_terms(model), data.validation, config.data.batch_size),
        draw=drawer(
            model,
            lambda key: jax.random.normal(key, (shared_count(PREVIEW), *model.latent_shape)),
            vae.decode,
            PREVIEW,
        ),
        **penalised(loss, {"vae": build("vae_penalty", config)}, model),
    )


def _joint_stage(config: Config, model: LSGM, data: Data) -> Stage:
    settings, kl = build("train", config), build("joint_kl", config)

    def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
        return model.loss(params, batch, context.key, kl(context.step), context.ema_params)

    penalties = {
        "vae": build("joint_vae_penalty", config),
        "prior": build("joint_prior_penalty", config),
    }
    return Stage(
        name="joint",
        ema=ema(settings, skip=() if settings.ema_vae else ("vae",)),
        **_of_an_lsgm(config, model, data),
        **penalised(loss, penalties, model),
    )


def _frozen_stage(config: Config, model: LSGM, data: Data) -> Stage:
    """The second stage with the VAE as it is: the published third stage, and two-stage training."""

    def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
        return model.prior_loss(params, batch, context.key)

    return Stage(
        name="joint",
        ema=ema(build("train", config), skip=("vae",)),
        **_of_an_lsgm(config, model, data),
        **penalised(loss, {"prior": build("joint_prior_penalty", config)}, model),
    )


def _of_an_lsgm(config: Config, model: LSGM, data: Data) -> dict[str, Any]:
    """What the second stage is, whether or not it trains the VAE."""

    def adapt(params: Params) -> Params:
        if not model.inactive_kl or data.training is None:
            return params
        kl = _kl_per_channel(model, params["vae"], data.training, config.data.batch_size)
        return jax.jit(model.leave_inactive)(params, kl.astype(np.float32))

    return dict(
        init=lambda key, before: {"vae": before, **model.init_prior(key)},
        adapt=adapt,
        optimiser=build_optimiser(config, "joint"),
        steps=config.train.steps,
        validate=validator(model_terms(model), data.validation, config.data.batch_size),
        draw=model_drawer(model, data, PREVIEW),
    )


def _kl_per_channel(model: LSGM, params: Params, training: Samples, batch_size: int) -> np.ndarray:
    """KL(q || N(0, I)) of each channel of z_0, nats, mean over training data."""

    @OverDevices
    def held(params: Params, batch: Batch, key: Key) -> PerChannel:
        latent = model.vae.autoencode(params, batch.x, key, train=False).latent
        kl = latent.gaussian_cross_entropy - latent.entropy
        return jnp.sum(kl, axis=tuple(range(1, kl.ndim - 1)))

    count = min(len(training), INACTIVE_IMAGES)
    x = training.batch(np.arange(count))["x"]
    total = np.zeros(model.latent_shape[-1])
    for number, (rows, real) in enumerate(padded_batches(x, batch_size)):
        k_batch = jax.random.fold_in(jax.random.key(0), number)
        total += np.asarray(held(params, Batch(jnp.asarray(rows)), k_batch)[:real], np.float64).sum(axis=0)
    return total / count


def vae_terms(model: LSGM) -> PerImage:
    """The bound of an LSGM's VAE with its Gaussian prior."""

    def terms(params: Params, batch: Batch, key: Key, stratum: Stratum) -> Named:
        return named(model.vae.bound(params, batch, key))

    return terms
