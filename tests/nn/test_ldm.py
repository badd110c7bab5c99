"""Published sizes of the LDM denoiser; exact timesteps from times; invalid settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.arrays import in_steps
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.errors import ConfigError
from lsgm_jax.evaluation.model_size import count_parameters
from lsgm_jax.interop.ldm_unet import ldm_unet_table
from lsgm_jax.nn.ldm import LDMUNet
from tests import tiny


def published(out_channels, channels, channel_mult, attention, **settings):
    return LDMUNet(out_channels, channels, channel_mult, 2, attention, **settings)


# By model: the denoiser, its input channels, and millions of parameters.
WIDE = (1, 2, 3, 4)
PUBLISHED = {
    "celebahq": (published(3, 224, WIDE, (8, 4, 2), head_width=32), 3, 274.1),
    "churches": (
        published(4, 192, (1, 2, 2, 4, 4), (1, 2, 4, 8), heads=8, scale_shift=True, resample_in_blocks=True),
        4,
        295.0,
    ),
    "imagenet": (published(4, 256, (1, 2, 4), (4, 2, 1), head_width=32, context_width=512), 4, 395.0),
    "imagenet_v2": (published(3, 192, (1, 2, 3, 5), (8, 4, 2), heads=1, context_width=512), 3, 400.9),
    "text": (published(4, 320, (1, 2, 4, 4), (4, 2, 1), heads=8, context_width=1280), 4, 872.3),
    "text_small": (published(3, 192, (1, 2, 3, 5), (8, 4, 2), head_width=32, context_width=640), 3, 403.6),
    "superresolution": (published(3, 160, (1, 2, 2, 4), (16, 8), head_width=32), 6, 113.6),
    "inpainting": (published(3, 256, WIDE, (8, 4, 2), heads=8, resample_in_blocks=True), 7, 387.3),
    "semantic": (published(3, 128, (1, 4, 8), (32, 16, 8), heads=8), 6, 215.2),
    "layout": (
        published(3, 128, WIDE, (8, 4, 2), head_width=32, context_width=512, transformer_depth=3),
        3,
        246.3,
    ),
    "retrieval": (published(16, 448, WIDE, (4, 2, 1), head_width=32, context_width=768), 16, 1335.5),
}


def inputs_of(module, channels, side=16):
    z_t, t = jnp.zeros((1, side, side, channels)), jnp.ones(1)
    return (z_t, t) if module.context_width is None else (z_t, t, jnp.zeros((1, 2, module.context_width)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
    """To the published digit; the 387,245,827 of inpainting were rounded twice."""
    module, channels, millions = PUBLISHED[name]
    init = functools.partial(module.init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs_of(module, channels))
    assert abs(count_parameters(shapes) / 1e6 - millions) < 0.055


def test_deep_networks_are_numbered_as_published():
    """Four levels of two blocks, without attention at the lowest resolution, have 686 tensors."""
    module, channels, _ = PUBLISHED["text"]
    names = {entry.official for entry in ldm_unet_table(module, channels)[0]}
    assert len(names) == 686
    resampling = {"input_blocks.3.0.op", "input_blocks.6.0.op", "input_blocks.9.0.op"}
    resampling |= {"output_blocks.2.1.conv", "output_blocks.5.2.conv", "output_blocks.8.2.conv"}
    assert {
        name.removesuffix(".weight") for name in names if ".op.w" in name or "conv.w" in name
    } == resampling
    assert {"input_blocks.11.0.in_layers.0.weight", "output_blocks.11.1.proj_out.weight"} <= names


@pytest.mark.parametrize("steps", [4, 1000, 1024, 4000])
def test_times_of_timesteps_convert_to_integer_steps(steps, precision):
    index = np.arange(steps + 1)
    np.testing.assert_array_equal(in_steps(jnp.asarray(index, precision) / steps, steps), index)
    assert jax.grad(in_steps)(jnp.asarray(0.25), steps) == steps


TINY = {"out_channels": 3, "channels": 32, "channel_mult": (1, 2), "blocks": 1, "attention": (2,)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 48, "heads": 4}, "channels=48: use a multiple of 32"),
        ({}, "heads=None, head_width=None: give one of the two"),
        ({"heads": 0}, "heads=0, head_width=None: give one of the two"),
        ({"heads": 4, "head_width": 8}, "heads=4, head_width=8: give one of the two"),
        ({"heads": 3}, "heads=3 does not divide the 64 channels of level 1"),
        ({"head_width": 48}, "head_width=48 does not divide the 64 channels of level 1"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        LDMUNet(**(TINY | change))


@pytest.mark.parametrize(
    ("side", "context_width", "given", "message"),
    [
        (7, None, None, "2 levels need sides divisible by 2"),
        (8, 5, None, "a context of width None for a network with context_width=5"),
        (8, None, 5, "a context of width 5 for a network with context_width=None"),
        (8, 6, 5, "a context of width 5 for a network with context_width=6"),
    ],
)
def test_inputs_that_do_not_fit_are_named(side, context_width, given, message):
    module = LDMUNet(**TINY, heads=4, context_width=context_width)
    context = None if given is None else jnp.zeros((1, 2, given))
    with pytest.raises(ValueError, match=message):
        module.init(
            jax.random.key(0), jnp.zeros((1, side, side, 3)), jnp.ones(1), context, deterministic=True
        )


LDM_SCORE = ("name=ldm", "channels=32", "channel_mult=(1, 2)", "blocks=1", "attention=(2,)", "heads=2")


def test_ldm_is_a_score_network_of_any_config():
    """It is chosen by name; freshly initialised, the prediction is its fixed part, as for every score network."""
    path = str(tiny.ROOT / "configs" / "sgm_digits.py")
    model = experiment(load_config(path, [f"--config.score.{field}" for field in LDM_SCORE])).model
    params = jax.jit(model.init)(jax.random.key(0))
    assert params["score_net"]["down_0_0"]["kernel"].shape[-1] == 32
    z_t = jax.random.normal(jax.random.key(1), (2, *model.latent_shape))
    t = jnp.array([0.1, 0.9])
    fixed = 0.0 if model.prior.fixed_part is None else model.prior.fixed_part(model.prior.process, z_t, t)
    np.testing.assert_array_equal(model.prior.eps_net(params)(z_t, t), jnp.broadcast_to(fixed, z_t.shape))


def test_a_config_cannot_set_the_context_width():
    path = str(tiny.ROOT / "configs" / "sgm_digits.py")
    with pytest.raises(ConfigError, match=r"config\.score\.context_width does not exist"):
        load_config(path, [f"--config.score.{field}" for field in (*LDM_SCORE, "context_width=8")])
