"""What is trained, and under which conditions: the plan that `loop.py` carries out."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from lsgm_jax.arrays import Key
from lsgm_jax.nn.network import Params
from lsgm_jax.training.sharding import Launcher
from lsgm_jax.training.spec import TrainSpec
from lsgm_jax.training.state import TrainState, create_state
from lsgm_jax.training.step import EMA, Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What is optimised, how, for how long, and how its progress is judged.

    Attributes:
        init: fresh parameters from a key and the best ones of the stage before, which the first stage lacks.
        adapt: changes fresh parameters by what the data say.
        memory: what the loss finds in the first step, from parameters and a key (see `Aux.memory`).
        validate: scores averaged parameters on the validation split.
        judged_by: that of the scores by which the best parameters are chosen; less is better.
        draw: a picture [h, w, c], uint8, of what averaged parameters generate.
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
    adapt: Callable[[Params], Params] = lambda params: params
    memory: Callable[[Params, Key], Any] = lambda params, key: ()

    def first_state(self, params: Params, key: Key) -> TrainState:
        """The state before the first step; the key is for what the loss finds there."""
        return create_state(params, self.optimiser, self.memory(params, key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """How a run's stages are trained, and where that is written down.

    Attributes:
        workdir: gets `checkpoints/<stage>`, `metrics.csv`, `tensorboard/<stage>`, and `faults` if there are any.
        config: what each checkpoint remembers of the run.
        trace: whether a few steps of every stage are traced into `profile/<stage>`.
    """

    train: TrainSpec
    launcher: Launcher
    workdir: pathlib.Path
    config: dict
    trace: bool = False
