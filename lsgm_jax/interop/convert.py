"""Official checkpoints as runs of ours."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lsgm_jax.conditioning.request import Conditions
from lsgm_jax.config.build_autoencoders import build_adversarial_training
from lsgm_jax.config.build_models import build_model
from lsgm_jax.config.registry import Config
from lsgm_jax.config.section import build
from lsgm_jax.errors import ConfigError, ConversionError
from lsgm_jax.interop.ldm_checkpoint import (
    discriminator_params,
    find_ldm_parts,
    first_stage_params,
    ldm_params,
)
from lsgm_jax.interop.official import find_parts, official_params, vae_params
from lsgm_jax.interop.torch_file import read_torch
from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.sgm import SGM
from lsgm_jax.nn.network import Params
from lsgm_jax.sampling.run import check_other_sections, claim, holds_checkpoints
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.recipes.plan import last_stage

# Fields of the config's section `train`, by the stages whose lengths they are; "steps" for all others.
STEPS = {"vae": "vae_steps", "first_stage": "first_stage_steps"}


class Converted(NamedTuple):
    """What `convert` found in a checkpoint."""

    stage: str  # "vae" or "first_stage" for a first stage of LSGM or latent diffusion, otherwise the model's last
    averaged: bool  # whether the score network is the moving average
    counters: Mapping[str, int]  # the checkpoint's own count of steps and epochs


def convert(config: Config, checkpoint: pathlib.Path, workdir: pathlib.Path, *, averaged: bool) -> Converted:
    """Makes a run of an official checkpoint, to be sampled and scored like one that was trained here.

    A first stage alone becomes that of the run, from which `train` goes on with the second.

    Args:
        config: the model with the settings of the checkpoint.
        averaged: take the score network's moving average, where the checkpoint has one.

    Raises:
        ConversionError: if the file cannot be read, or its networks are not the config's.
        ConfigError: if the folder holds a run already, or cannot be written.
        DataError: if there is no vocabulary for a model of texts.
    """
    model = build_model(config)
    check_other_sections(config)
    for section in ("data", "train"):
        build(section, config)
    if holds_checkpoints(workdir):
        raise ConfigError(f"{workdir} holds a run already: choose another --workdir")
    content = read_torch(checkpoint)
    try:
        if isinstance(model, LDM):
            found, params = _latent_diffusion(content, config, model, averaged)
        else:
            found, params = _lsgm_or_cld(content, model, averaged)
    except ConversionError as error:
        raise ConversionError(f"{checkpoint}: {error}") from error
    whole = found.stage == last_stage(model)
    conditions = _conditions(config, workdir) if whole else None
    claim(workdir, config)
    if conditions is not None:
        conditions.save(workdir)
    step = config.train[STEPS.get(found.stage, "steps")]
    meta = {"config": config.to_dict(), "converted": checkpoint.name, "counters": dict(found.counters)}
    with Checkpoints(workdir / "checkpoints" / found.stage) as checkpoints:
        checkpoints.save_finished(step, params, meta)
    return found


def _conditions(config: Config, workdir: pathlib.Path) -> Conditions:
    if config.conditioning.name == "text" and not config.conditioning.vocabulary:
        raise ConfigError(
            "config.conditioning.vocabulary has to be that of the checkpoint, BERT's: give the path of its vocab.txt"
        )
    return Conditions.for_training(config, workdir)


def _lsgm_or_cld(content: Any, model: LSGM | SGM, averaged: bool) -> tuple[Converted, Params]:
    parts = find_parts(content)
    if isinstance(model, LSGM) and parts.score_net is None:
        params = vae_params(parts.require_vae(), model.vae.backbone)
        return Converted("vae", False, parts.counters), params
    used_average = averaged and parts.score_net_average is not None
    params = official_params(parts, model, averaged=averaged)
    return Converted(last_stage(model), used_average, parts.counters), params


def _latent_diffusion(content: Any, config: Config, model: LDM, averaged: bool) -> tuple[Converted, Params]:
    parts = find_ldm_parts(content)
    if parts.denoiser:
        params = ldm_params(parts, model, averaged=averaged)
        return Converted(last_stage(model), averaged and bool(parts.average), parts.counters), params
    discriminator = build_adversarial_training(config, model.first_stage).discriminator
    if parts.discriminator:
        opponent = discriminator_params(parts.discriminator, discriminator)
    else:
        opponent = discriminator.init(jax.random.key(config.seed), jnp.zeros((1, *model.data_shape)))
    params = {
        "first_stage": first_stage_params(parts.first_stage, model.first_stage),
        "discriminator": opponent,
    }
    return Converted("first_stage", False, parts.counters), params
