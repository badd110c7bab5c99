"""What a run trains, one stage after the other."""

from collections.abc import Callable

import jax.numpy as jnp

from lsgm_jax.arrays import Key
from lsgm_jax.config.build_autoencoders import build_adversarial_training
from lsgm_jax.config.registry import Config
from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.model import Model
from lsgm_jax.models.sgm import SGM
from lsgm_jax.nn.network import Params
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.recipes.ldm import ldm_stages
from lsgm_jax.training.recipes.lsgm import lsgm_stages
from lsgm_jax.training.recipes.parts import Data
from lsgm_jax.training.recipes.sgm import score_stage
from lsgm_jax.training.stage import Stage

LAST = {LSGM: "joint", SGM: "score", LDM: "prior"}


def last_stage(model: Model) -> str:
    """Name of the stage whose parameters are the model's."""
    return LAST[type(model)]


def make_stages(config: Config, model: Model, data: Data) -> list[Stage]:
    """The stages of a run, in order."""
    match model:
        case LSGM():
            return lsgm_stages(config, model, data)
        case LDM():
            return ldm_stages(config, model, data)
        case SGM():
            return [score_stage(config, model, data)]


def initialiser(config: Config, model: Model, stage: str) -> Callable[[Key], Params]:
    """Makes fresh parameters like those that a stage leaves."""
    if stage == last_stage(model):
        return model.init
    if isinstance(model, LSGM) and stage == "vae":
        return model.vae.init
    assert isinstance(model, LDM)
    return build_adversarial_training(config, model.first_stage).init


def bare_stages(config: Config, model: Model) -> list[Stage]:
    """The stages without any data: to be measured, not to be run."""
    return make_stages(config, model, Data(None, Batch(jnp.zeros((0, *model.data_shape)))))
