"""LDM's single blocks, on inputs that hardly vary too, where the epsilon of a norm shows, and on odd sides; masks."""

import jax
from flax import linen as nn
from flax.traverse_util import flatten_dict

from lsgm_jax.autoencoders import ldm
from lsgm_jax.conditioning.images import nearest
from lsgm_jax.interop import ldm_autoencoder, ldm_unet
from lsgm_jax.interop.tables import CONV, POINTWISE, SAME, Entry, to_variables
from lsgm_jax.nn.layers import downsample, upsample
from lsgm_jax.nn.ldm_layers import (
    Double,
    Halve,
    ResidualBlock,
    SelfAttention,
    SpatialTransformer,
    timestep_embedding,
)
from tests.parity.cld import channels_first, channels_last
from tests.parity.scores import state_dict

ANGLE = 1e-4


def check_parts(fixture):
    if fixture.slack == {}:  # inputs are stored in float32 anyway
        return fixture.leave(fixture.outputs())
    state, h = state_dict(fixture), fixture.spec["hyperparameters"]
    for part, settings in h["parts"].items():
        assert part in BLOCKS, f"blocks of kind {part!r} are not handled yet"
        prefix = f"{part}."
        own = {name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)}
        module, variables, inputs, options = BLOCKS[part](fixture, part, settings, own)
        forward = jax.jit(lambda x, m=module, v=variables, i=inputs, o=options: m.apply(v, x, *i, **o))
        for name in sorted(fixture.outputs()):
            if name.startswith(f"{part}/"):
                out = channels_first(forward(channels_last(fixture.input(f"in/{name}"))))
                # Where inputs vary by 2e-3 the original, in float32, is less exact.
                share = 1e-4 if name.endswith("x_small") else 2e-5
                fixture.check_scaled(name, out, rtol=share, single_rtol=share)
    index = fixture.input("in/t")
    for name in sorted(fixture.outputs()):
        if name.startswith("timestep_embedding/"):
            width = int(name.rpartition("width")[2])
            fixture.check_scaled(name, timestep_embedding(index, width), rtol=ANGLE, single_rtol=ANGLE)


def block(build, entries):
    """A block of ours by `build(fixture, settings, channels of the output)` -> module, inputs beside x, options.

    `entries` of the shapes of the module's variables are its tensors.
    """

    def prepare(fixture, part, settings, state):
        channels = fixture.arrays[f"out/{part}/x"].shape[1]
        module, inputs, options = build(fixture, settings, channels)
        x = channels_last(fixture.input(f"in/{part}/x"))
        expected = jax.eval_shape(lambda: module.init(jax.random.key(0), x, *inputs, **options))
        return module, to_variables(list(entries(expected)), state, expected), inputs, options

    return prepare


def of_denoiser(build):
    return block(build, ldm_unet.entries)


def residual(scale_shift=False, resample=None):
    def build(fixture, settings, channels):
        module = ResidualBlock(channels, scale_shift=scale_shift, resample=resample)
        return module, (fixture.input("in/emb"),), {"deterministic": True}

    return build


def heads_of(settings, channels):
    return settings["heads"] if "heads" in settings else channels // settings["head_width"]


def attention(_, settings, channels):
    return SelfAttention(heads_of(settings, channels)), (), {}


def of_autoencoder(build):
    def entries(expected):
        for path in flatten_dict(expected):
            *steps, leaf = path[1:]
            official = ".".join([*(AUTOENCODER_STEPS[step] for step in steps), ldm_autoencoder.LEAVES[leaf]])
            shortcut = steps[0] in POINTWISE_STEPS
            kernel = POINTWISE if shortcut else CONV
            yield Entry(official, path, kernel if leaf == "kernel" else SAME)

    return block(build, entries)


# What the original calls the layers of an autoencoder's block; dense layers of ours are 1 x 1 convolutions there.
POINTWISE_STEPS = ("shortcut", "query", "key", "value", "out")
AUTOENCODER_STEPS = {
    step: ldm_autoencoder.STEPS[step]
    for step in ("norm_0", "conv_0", "norm_1", "conv_1", "norm", *POINTWISE_STEPS)
} | {"conv": "conv"}


class Resampled(nn.Module):
    """What encoder and decoder have between two levels."""

    halve: bool

    @nn.compact
    def __call__(self, h):
        if self.halve:
            return ldm.halving_conv("conv", h)
        return nn.Conv(h.shape[-1], (3, 3), name="conv")(upsample(h))


def transformer(fixture, settings, channels):
    depth = settings.get("depth", 1)
    return SpatialTransformer(heads_of(settings, channels), depth), (fixture.input("in/context"),), {}


# By the part's name: what makes a module, its variables, its inputs beside the maps, and its options.
BLOCKS = {
    "unet_resblock": of_denoiser(residual()),
    "unet_resblock_scaleshift": of_denoiser(residual(scale_shift=True)),
    "unet_resblock_down": of_denoiser(residual(resample=downsample)),
    "unet_resblock_up": of_denoiser(residual(resample=upsample)),
    "unet_attention": of_denoiser(attention),
    "unet_spatial_transformer": of_denoiser(transformer),
    "unet_downsample": of_denoiser(lambda _, settings, channels: (Halve(channels), (), {})),
    "autoencoder_resblock": of_autoencoder(
        lambda _, settings, channels: (ldm.ResidualBlock(channels), (), {"deterministic": True})
    ),
    "autoencoder_attention": of_autoencoder(lambda *_: (ldm.PixelAttention(), (), {})),
    "autoencoder_downsample": of_autoencoder(lambda *_: (Resampled(halve=True), (), {})),
    "autoencoder_upsample": of_autoencoder(lambda *_: (Resampled(halve=False), (), {})),
    "unet_upsample": of_denoiser(lambda _, settings, channels: (Double(channels), (), {})),
}


def check_mask(fixture):
    mask, factor = channels_last(fixture.input("in/mask")), fixture.spec["hyperparameters"]["factor"]
    height, width = (side // factor for side in mask.shape[1:3])
    fixture.check_scaled("mask_down", channels_first(nearest(mask, height, width)), rtol=0.0, single_rtol=0.0)


CHECKS = {"ldm_parts": check_parts, "ldm_mask_downsample": check_mask}
