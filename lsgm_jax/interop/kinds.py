"""Official checkpoints -> parameters, for each kind of model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Params
from lsgm_jax.interop.ldm_checkpoint import (
    discriminator_params,
    find_ldm_parts,
    first_stage_params,
    ldm_params,
)
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


def convert_sgm(content: Any, model: SGM, recipe: Recipe, *, ema: bool) -> Converted:
    """Converts a checkpoint of CLD-SGM."""
    parts = find_parts(content)
    params = official_params(parts, model, ema=ema)
    used = ema and parts.score_net_average is not None
    return Converted(model.stages[-1], used, parts.counters, params)


def convert_lsgm(content: Any, model: LSGM, recipe: Recipe, *, ema: bool) -> Converted:
    """Converts a checkpoint of LSGM, or of the VAE of its first stage."""
    parts = find_parts(content)
    if parts.score_net is None:
        params = vae_params(parts.require_vae(), model.vae.backbone)
        return Converted(model.stages[0], False, parts.counters, params)
    params = official_params(parts, model, ema=ema)
    used = ema and parts.score_net_average is not None
    return Converted(model.stages[-1], used, parts.counters, params)


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
