"""Official checkpoints as runs of ours."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from lsgm_jax.build import build, build_model
from lsgm_jax.interop.errors import ConversionError
from lsgm_jax.interop.official import find_parts, official_params, vae_params
from lsgm_jax.interop.torch_file import read_torch
from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.run import check_other_sections, claim, holds_checkpoints
from lsgm_jax.schema import Config, ConfigError
from lsgm_jax.stages.plan import last_stage
from lsgm_jax.training.checkpoint import Checkpoints


class Converted(NamedTuple):
    """What `convert` found in a checkpoint."""

    stage: str  # "vae" for a first stage of LSGM, otherwise the model's last
    averaged: bool  # whether the score network is the moving average
    counters: Mapping[str, int]  # the checkpoint's own count of steps and epochs


def convert(config: Config, checkpoint: pathlib.Path, workdir: pathlib.Path, *, averaged: bool) -> Converted:
    """Makes a run of an official checkpoint, to be sampled and scored like one that was trained here.

    A first stage of LSGM becomes the run's VAE, from which `train` goes on with the second.

    Args:
        config: the model with the settings of the checkpoint.
        averaged: take the score network's moving average, where the checkpoint has one.

    Raises:
        ConversionError: if the file cannot be read, or its networks are not the config's.
        ConfigError: if the folder holds a run already, or cannot be written.
    """
    model = build_model(config)
    assert not isinstance(model, LDM)
    check_other_sections(config)
    for section in ("data", "train"):
        build(section, config)
    if holds_checkpoints(workdir):
        raise ConfigError(f"{workdir} holds a run already: choose another --workdir")
    content = read_torch(checkpoint)
    try:
        parts = find_parts(content)
        if isinstance(model, LSGM) and parts.score_net is None:
            stage, step = "vae", config.train.vae_steps
            params = vae_params(parts.require_vae(), model.vae.backbone)
        else:
            stage, step = last_stage(model), config.train.steps
            params = official_params(parts, model, averaged=averaged)
    except ConversionError as error:
        raise ConversionError(f"{checkpoint}: {error}") from error
    claim(workdir, config)
    used_average = averaged and parts.score_net_average is not None
    meta = {"config": config.to_dict(), "converted": checkpoint.name, "counters": dict(parts.counters)}
    with Checkpoints(workdir / "checkpoints" / stage) as checkpoints:
        checkpoints.save_finished(step, params, meta)
    return Converted(stage, used_average, parts.counters)
