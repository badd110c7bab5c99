"""LDM's denoiser: the whole network with every block's output, and single blocks."""

import functools
import re

import jax
import jax.numpy as jnp
from flax import linen as nn

from lsgm_jax.conditioning.images import nearest
from lsgm_jax.conditioning.labels import ClassEmbedding
from lsgm_jax.interop.ldm_unet import ldm_unet_state, ldm_unet_variables
from lsgm_jax.nn.ldm import LDMUNet
from lsgm_jax.nn.ldm_layers import timestep_embedding
from tests.parity.cld import channels_first, channels_last
from tests.parity.scores import check_round_trip, state_dict

# What the original computed in float32 is that far from exact; the text's README says 3e-5 of classes.
SINGLE = 2e-5
# An angle near 1000 has four digits after the point in float32.
ANGLE = 1e-4
GROUPS = {"input_blocks": "down", "output_blocks": "up"}
CLASS_TABLE = "cond_stage.embedding.weight"
# Settings that say nothing of the arithmetic, or are given by shapes.
DESCRIPTIVE = {
    "image_size",
    "in_channels",
    "conditioning",
    "class_embedding",
    "context_length",
    "legacy",
    "dropout",
}


def denoiser(h):
    h = {name: value for name, value in h.items() if name not in DESCRIPTIVE}
    head_width, heads = h.pop("num_head_channels", None), h.pop("num_heads", None)
    transformer, context_width = h.pop("use_spatial_transformer", False), h.pop("context_dim", None)
    module = LDMUNet(
        out_channels=h.pop("out_channels"),
        channels=h.pop("model_channels"),
        channel_mult=tuple(h.pop("channel_mult")),
        blocks=h.pop("num_res_blocks"),
        attention=tuple(h.pop("attention_resolutions")),
        heads=None if head_width else heads,
        head_width=head_width,
        context_width=context_width if transformer else None,
        transformer_depth=h.pop("transformer_depth", 1),
        scale_shift=h.pop("use_scale_shift_norm", False),
        resample_in_blocks=h.pop("resblock_updown", False),
    )
    assert not h, f"settings that are not handled: {h}"
    return module


def check_unet(fixture):
    if fixture.slack == {}:  # inputs are stored in float32 anyway
        return fixture.leave(fixture.outputs())
    h, state = fixture.spec["hyperparameters"], state_dict(fixture)
    module = denoiser(h)
    table = state.pop(CLASS_TABLE, None)
    variables = ldm_unet_variables(state, module, h["in_channels"])
    check_round_trip(state, ldm_unet_state(variables, module, h["in_channels"]))

    index = fixture.input("in/t")
    features = timestep_embedding(index, module.channels)
    fixture.check_scaled("t_sinusoid", features, rtol=ANGLE, single_rtol=ANGLE)
    z_t, beside = channels_last(fixture.input("in/x")), concatenated(fixture)
    context = context_of(fixture, table)
    cotangent = channels_last(fixture.input("in/cotangent"))
    # The original always embeds the time in float32; to compare the rest in float64 it has to see the same features.
    recorded = fixture.input("out/t_sinusoid") if fixture.slack is None else None

    def projection(z_t, variables):
        inputs = jnp.concatenate([z_t, beside], axis=-1)
        t = (index + 1.0) / module.steps
        with nn.intercept_methods(functools.partial(give_time, recorded)):
            eps, seen = module.apply(
                variables,
                inputs,
                t,
                context,
                deterministic=True,
                capture_intermediates=True,
                mutable=["intermediates"],
            )
        return jnp.sum(cotangent * eps), (eps, seen["intermediates"])

    gradient, (eps, seen) = jax.jit(jax.grad(projection, has_aux=True))(z_t, variables)
    share = functools.partial(fixture.check_scaled, rtol=SINGLE, single_rtol=SINGLE)
    share("eps", channels_first(eps))
    fixture.check_scaled("eps_float64", channels_first(eps), rtol=1e-9, single_rtol=SINGLE)
    share("grad_x", channels_first(gradient))
    for name in sorted(fixture.outputs()):
        if name.startswith("block/"):
            share(name, output_of(name.removeprefix("block/"), seen))


def give_time(recorded, call, args, kwargs, context):
    if recorded is not None and context.module.name == "time_in" and context.method_name == "__call__":
        return call(recorded)
    return call(*args, **kwargs)


def output_of(block, seen):
    """What the original's top-level block gave: the output of the last of our layers in it."""
    if block == "time_embed":
        return seen["time_out"]["__call__"][0]
    if block == "middle_block":
        own = "middle"
    else:
        group, number = block.split(".")
        own = f"{GROUPS[group]}_{number}"
    last = max(name for name in seen if re.fullmatch(rf"{own}_\d", name))
    return channels_first(seen[last]["__call__"][0])


def concatenated(fixture):
    """What the latent gets beside it: any maps, then the mask of inpainting reduced to their size."""
    height, width = fixture.arrays["in/x"].shape[2:]
    known = {"in/x", "in/cotangent", "in/mask"}
    names = [name for name in fixture.arrays if name.startswith("in/") and fixture.arrays[name].ndim == 4]
    maps = [channels_last(fixture.input(name)) for name in names if name not in known]
    if "in/mask" in names:
        maps.append(nearest(channels_last(fixture.input("in/mask")), height, width))
        fixture.check("mask_down", channels_first(maps[-1]))
    beside = jnp.concatenate([jnp.zeros((len(fixture.arrays["in/t"]), height, width, 0)), *maps], axis=-1)
    if "concat" in fixture.outputs():
        fixture.check("concat", channels_first(beside))
    return beside


def context_of(fixture, table):
    if table is None:
        return fixture.input("in/context") if "in/context" in fixture.arrays else None
    labels = jnp.asarray(fixture.arrays["in/class_label"], jnp.int32)
    context = ClassEmbedding(*table.shape).apply({"params": {"table": {"embedding": table}}}, labels)
    fixture.check("context", context)
    return context


# The kind of these fixtures is their name.
NAMES = ("uncond", "uncond_updown", "classcond", "textcond", "concat")
CHECKS = {f"ldm_unet_{name}": check_unet for name in NAMES}
