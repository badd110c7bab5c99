"""A training stage, and the settings of the run it belongs to; `loop.py` trains it."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optax

from lsgm_jax.arrays import Key, Params
from lsgm_jax.locks import Lock
from lsgm_jax.training.sharding import Launcher
from lsgm_jax.training.spec import TrainSpec
from lsgm_jax.training.state import TrainState, create_state
from lsgm_jax.training.step import EMA, Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A training stage: loss, optimiser, number of steps, and validation.

    Attributes:
        name: of the stage, in checkpoints and logs.
        init: returns initial parameters from a key and the best EMA parameters of the stage before; None for the first
            stage.
        loss: function of parameters, batch and context, see `step.Loss`.
        optimiser: of the parameters.
        ema: of the parameters.
        steps: length of the stage.
        validate: returns metrics of EMA parameters on the validation split.
        draw: returns an image grid of samples of EMA parameters, [h, w, c] uint8.
        judged_by: the metric of `validate` that selects the best checkpoint; lower is better.
        shown: the metrics of a step on the progress bar, with their names there.
        adapt: changes initial parameters given the training data.
        memory: returns the `Context.memory` of the first step from parameters and a key (see `Aux.memory`).
    """

    name: str
    init: Callable[[Key, Params | None], Params]
    loss: Loss
    optimiser: optax.GradientTransformation
    ema: EMA
    steps: int
    validate: Callable[[Params], dict[str, float]]
    draw: Callable[[Params], np.ndarray]
    judged_by: str = "nelbo"
    shown: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"loss": "loss", "nelbo": "NELBO"})
    adapt: Callable[[Params], Params] = lambda params: params
    memory: Callable[[Params, Key], Any] = lambda params, key: ()

    def first_state(self, params: Params, key: Key) -> TrainState:
        """Returns the state before the first step; the key is for `memory`."""
        return create_state(params, self.optimiser, self.memory(params, key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """Settings that all stages of a run share.

    Attributes:
        train: the train section of the config.
        launcher: runs the training step on all devices.
        lock: on the folder of the run, which gets `checkpoints/<stage>`, `metrics.csv`, `tensorboard/<stage>`, and
            `faults` for failing batches.
        config: the config of the run, saved with each checkpoint.
        trace: whether to write a profiler trace of every stage to `profile/<stage>`.
    """

    train: TrainSpec
    launcher: Launcher
    lock: Lock
    config: dict
    trace: bool = False

    @property
    def workdir(self) -> pathlib.Path:
        """The folder of the run."""
        return self.lock.folder
