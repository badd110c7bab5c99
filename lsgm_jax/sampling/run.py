"""A run: one config and one folder, opened for sampling and evaluation."""

import dataclasses
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import Params
from lsgm_jax.conditioning.request import Conditions
from lsgm_jax.config.factory import Experiment, experiment
from lsgm_jax.config.load import SAMPLING_SECTIONS, as_plain, override, read_config
from lsgm_jax.config.registry import Config
from lsgm_jax.errors import NumericalError
from lsgm_jax.evaluation.cache import digest
from lsgm_jax.models.protocol import Model
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.devices import data_mesh, replicated

CONFIG = "config.json"  # in the folder of a run


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        workdir: its folder.
        config: as it was trained, with overrides of sampling and evaluation.
        experiment: what the config describes.
    """

    workdir: pathlib.Path
    config: Config
    experiment: Experiment

    @classmethod
    def open(cls, workdir: pathlib.Path | str, overrides: Sequence[str] = ()) -> "Run":
        """Reads the config that training has left in the folder.

        Args:
            overrides: "--config.a.b=value", of `SAMPLING_SECTIONS` alone.

        Raises:
            ConfigError: if there is none, or an override is off.
        """
        workdir = pathlib.Path(workdir).expanduser()
        config = override(read_config(workdir / CONFIG), list(overrides))
        return cls(workdir, config, experiment(config))

    def overridden(self, overrides: Sequence[str]) -> "Run":
        """Returns the run with further overrides of sampling and evaluation.

        Raises:
            ConfigError: if an override is off.
        """
        config = override(self.config, list(overrides))
        return Run(self.workdir, config, experiment(config))

    @property
    def model(self) -> Model:
        """The model."""
        return self.experiment.model

    def best(self, stage: str | None = None, *, everywhere: bool = False) -> tuple[Params, int]:
        """Returns the EMA parameters that validation chose, and their step.

        Args:
            stage: name of a training stage; None for the last one, which trains the model.
            everywhere: replicates them over all devices of all processes, for `OverDevices`, instead of the first one.

        Raises:
            NumericalError: if parameters are not finite, of which nothing could be made.
        """
        stage = stage or self.model.stages[-1]
        init = self.experiment.training.init(stage)
        with Checkpoints(self._checkpoints(stage), read_only=True) as checkpoints:
            like = jax.eval_shape(init, jax.random.key(0))
            if everywhere:
                sharding = replicated(data_mesh())
                like = jax.tree.map(lambda leaf: leaf.update(sharding=sharding), like)
            params, step = checkpoints.restore_best(like)
        _require_finite(params, f"{self._checkpoints(stage)}, step {step}")
        return params, step

    @property
    def conditions(self) -> Conditions:
        """The conditions of its samples."""
        return Conditions.of_run(self.experiment.conditioning, self.experiment.data, self.workdir)

    @property
    def has_vae_stage(self) -> bool:
        """Whether the first stage has left a VAE, a generative model by itself, to compare with."""
        autoencoder = self.model.autoencoder
        generates = autoencoder is not None and autoencoder.sample is not None
        return generates and self._checkpoints(self.model.stages[0]).is_dir()

    def identity(self, params: Params, sections: Collection[str]) -> dict[str, Any]:
        """Returns what an evaluation of the run depends on, as JSON; the key of its cache.

        Args:
            sections: those of `SAMPLING_SECTIONS` that it depends on; the rest of the config always counts.
        """
        skipped = set(SAMPLING_SECTIONS) - set(sections)
        return {
            "config": {name: value for name, value in as_plain(self.config).items() if name not in skipped},
            "parameters": digest(params),
        }

    def _checkpoints(self, stage: str) -> pathlib.Path:
        return checkpoints_of(self.workdir, stage)


def _require_finite(params: Params, where: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(np.asarray(leaf)).all():
            name = "/".join(str(getattr(key, "key", key)) for key in path)
            raise NumericalError(
                f"{where}: the parameter {name} is not finite; train again, or with another seed"
            )


def checkpoints_of(workdir: pathlib.Path, stage: str) -> pathlib.Path:
    """Returns the folder of the checkpoints of a stage."""
    return workdir / "checkpoints" / stage


def holds_checkpoints(workdir: pathlib.Path, stage: str = "*") -> bool:
    """Returns whether anything has been trained or converted there, of one stage or of any."""
    return any(checkpoints_of(workdir, "").glob(f"{stage}/[0-9]*"))
