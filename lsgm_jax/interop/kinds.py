"""Official checkpoints -> parameters, for each kind of model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Params
from lsgm_jax.interop.ldm_checkpoint import (
    find_ldm_parts,
    ldm_params,
)
from lsgm_jax.interop.ldm_first_stage import discriminator_params, first_stage_params
from lsgm_jax.interop.official import find_parts, official_params, vae_params
from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.sgm import SGM
from lsgm_jax.training.recipes.ldm import LDMRecipe
from lsgm_jax.training.recipes.recipe import Recipe


class Converted(NamedTuple):
    """The content of a checkpoint.

    Attributes:
        stage: the training stage that would leave these parameters: the first for an autoencoder, else the last.
        ema: whether the score network is the EMA.
        counters: the checkpoint's own count of steps and epochs.
    """

    stage: str
    ema: bool
    counters: Mapping[str, int]
    params: Params


def convert_score_model(content: Any, model: LSGM | SGM, recipe: Recipe, *, ema: bool) -> Converted:
    """Converts a checkpoint of LSGM or CLD-SGM, or of the VAE of LSGM's first stage alone."""
    parts = find_parts(content)
    if model.autoencoder is not None and parts.score_net is None:
        params = vae_params(parts.require_vae(), model.autoencoder.backbone)
        return Converted(model.stages[0], False, parts.counters, params)
    used = ema and parts.score_net_average is not None
    return Converted(model.stages[-1], used, parts.counters, official_params(parts, model, ema=ema))


def convert_ldm(content: Any, model: LDM, recipe: LDMRecipe, *, ema: bool) -> Converted:
    """Converts a checkpoint of an LDM, or of a first stage alone."""
    parts = find_ldm_parts(content)
    if parts.denoiser:
        params = ldm_params(parts, model, ema=ema)
        return Converted(model.stages[-1], ema and bool(parts.average), parts.counters, params)
    discriminator = recipe.adversarial.discriminator
    if parts.discriminator:
        opponent = discriminator_params(parts.discriminator, discriminator)
    else:
        opponent = discriminator.init(jax.random.key(recipe.seed), jnp.zeros((1, *model.data_shape)))
    params = {
        "first_stage": first_stage_params(parts.first_stage, model.first_stage),
        "discriminator": opponent,
    }
    return Converted(model.stages[0], False, parts.counters, params)
