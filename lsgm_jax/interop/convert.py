"""Official checkpoints as runs, to be sampled and evaluated like one that was trained here."""

import pathlib

from lsgm_jax.conditioning.request import Conditions
from lsgm_jax.config.factory import Experiment, experiment
from lsgm_jax.config.models import MODELS
from lsgm_jax.config.registry import Config
from lsgm_jax.errors import ConfigError, ConversionError
from lsgm_jax.interop.checkpoint_file import read_checkpoint
from lsgm_jax.interop.kinds import Converted
from lsgm_jax.locks import locked
from lsgm_jax.sampling.run import checkpoints_of, holds_checkpoints
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.train import ANOTHER_WORKDIR, claim


def convert(config: Config, checkpoint: pathlib.Path, workdir: pathlib.Path, *, ema: bool) -> Converted:
    """Makes a run of an official checkpoint.

    An autoencoder alone becomes the first stage of the run, from which `train` continues with the second.

    Args:
        config: the model with the settings of the checkpoint.
        ema: take the EMA of the score network, where the checkpoint has one.

    Raises:
        ConversionError: if the file cannot be read, or its networks are not the config's.
        ConfigError: if the folder holds a run already.
        LockedError: if another process is writing to the folder, or it cannot be written.
        DataError: if there is no vocabulary for a model of texts.
    """
    planned = experiment(config)
    with locked(workdir, "converted into", ANOTHER_WORKDIR):
        if holds_checkpoints(workdir):
            raise ConfigError(f"{workdir} holds a run already: {ANOTHER_WORKDIR}")
        return _convert(planned, config, checkpoint, workdir, ema=ema)


def _convert(
    planned: Experiment, config: Config, checkpoint: pathlib.Path, workdir: pathlib.Path, *, ema: bool
) -> Converted:
    content = read_checkpoint(checkpoint)
    try:
        found = MODELS[planned.name].convert(content, planned.model, planned.training, ema=ema)
    except ConversionError as error:
        raise ConversionError(f"{checkpoint}: {error}") from error
    complete = found.stage == planned.model.stages[-1]
    conditions = _conditions(planned, workdir) if complete else None
    claim(workdir, config)
    if conditions is not None:
        conditions.save(workdir)
    meta = {"config": config.to_dict(), "converted": checkpoint.name, "counters": dict(found.counters)}
    with Checkpoints(checkpoints_of(workdir, found.stage)) as checkpoints:
        checkpoints.save_finished(planned.training.steps(found.stage), found.params, meta)
    return found


def _conditions(planned: Experiment, workdir: pathlib.Path) -> Conditions:
    conditioning = planned.conditioning
    if getattr(conditioning, "source", None) == "captions" and not conditioning.vocabulary:
        raise ConfigError(
            "config.conditioning.vocabulary has to be that of the checkpoint, BERT's: give the path of its vocab.txt"
        )
    return Conditions.for_training(conditioning, planned.data, workdir)
