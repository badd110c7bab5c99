"""The smallest runs that still exercise everything: what tests share."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.autoencoders.nvae import NVAE
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.recipes.recipe import Data

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = str(ROOT / "configs" / "digits.py") + ":quick"
OVERRIDES = [
    "--config.autoencoder.channels=(8,8)",
    "--config.autoencoder.latent_channels=2",
    "--config.score.channels=(8,)",
    "--config.score.attention=()",
    "--config.data.batch_size=16",
]


def config(data_dir, *overrides):
    """A config whose steps take milliseconds."""
    return load_config(CONFIG, [*OVERRIDES, f"--config.data.data_dir={data_dir}", *overrides])


def model(*overrides):
    return experiment(load_config(CONFIG, [*OVERRIDES, *overrides])).model


def nvae(**fields):
    """The smallest NVAE of two scales."""
    small = dict(
        scales=2,
        groups_per_scale=1,
        latent_channels=2,
        encoder_channels=4,
        decoder_channels=8,
        channel_mult=(1, 1, 2),
        pre_cells=1,
        post_cells=1,
        input_skip=True,
        out_channels=3,
    )
    return NVAE(**small | fields)


def batch(count=16, seed=0):
    levels = np.random.default_rng(seed).integers(0, 17, (count, 8, 8, 1))
    return Batch(jnp.asarray(levels / 8.0 - 1.0, jnp.float32))


def at_full_kl(loss):
    """A model's loss as a training step calls it, with KL coefficient one at every step."""
    return lambda params, batch, context: loss(params, batch, context.key)


def assert_trees_equal(left, right):
    """Bit for bit."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), left, right)


def bare_stages(config):
    """The stages of a config without any data: to be measured, not to be run."""
    planned = experiment(config)
    return planned.training.stages(Data.without(planned.model.data_shape))


def training_state(config):
    """The shapes of what the last stage of a config trains."""
    model, key = experiment(config).model, jax.random.key(0)
    stage = bare_stages(config)[-1]
    return jax.eval_shape(stage.first_state, jax.eval_shape(model.init, key), key)
