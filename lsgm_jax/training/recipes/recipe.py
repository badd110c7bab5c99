"""What a kind of model trains, stage by stage."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from lsgm_jax.arrays import Key, Params
from lsgm_jax.data.pipeline import Samples
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.spec import TrainSpec
from lsgm_jax.training.stage import Stage


class Data(NamedTuple):
    """The data that stages see besides their batches.

    Attributes:
        training: None to measure a stage without running it.
        validation: the batch on which checkpoints are evaluated.
        batch_size: of validation.
    """

    training: Samples | None
    validation: Batch
    batch_size: int

    @classmethod
    def without(cls, shape: tuple[int, ...], batch_size: int = 1) -> "Data":
        """Returns no data of samples of this shape: the stages can then be measured, not run."""
        return cls(None, Batch(jnp.zeros((0, *shape))), batch_size)


class Donor(NamedTuple):
    """Another run whose autoencoder is taken in place of a first stage.

    Attributes:
        key: field of the config's section `train` that names the folder of the run.
        folder: its value.
        stage: the first stage, which trains the autoencoder.
        describes: prefixes of the config keys in which the two runs have to agree.
        of_whole: takes what that stage leaves from the parameters of the last stage.
    """

    key: str
    folder: str
    stage: str
    describes: tuple[str, ...]
    of_whole: Callable[[Params], Params]


@runtime_checkable
class Recipe(Protocol):
    """The training of one kind of model."""

    @property
    def train(self) -> TrainSpec:
        """The length and rhythm of training."""
        ...

    @property
    def donor(self) -> Donor | None:
        """Another run whose autoencoder is taken; None to train one."""
        ...

    def stages(self, data: Data) -> list[Stage]:
        """Returns the stages that are trained, in order."""
        ...

    def steps(self, stage: str) -> int:
        """Returns the number of steps of a stage."""
        ...

    def init(self, stage: str) -> Callable[[Key], Params]:
        """Returns a function that makes fresh parameters like those that a stage leaves."""
        ...
