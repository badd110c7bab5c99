"""LDM's state dict of a denoiser <-> the variables of `LDMUNet`: names translated part by part.

Our layers are numbered as the official ones are (`down_3_1` is `input_blocks.3.1`), and every name of ours has one
official counterpart, so a variable's path says its entry.
"""

from collections.abc import Iterator

import numpy as np
from flax.traverse_util import flatten_dict

from lsgm_jax.interop.tables import (
    CONV,
    DENSE,
    POINTWISE,
    SAME,
    Entry,
    Layout,
    State,
    Variables,
    to_state,
    to_variables,
    trace,
)
from lsgm_jax.nn.ldm import LDMUNet

# A convolution along one axis of length one that is a dense layer here.
LINE = Layout(lambda w: w[:, :, 0].T, lambda w: w.T[:, :, None])
# By our name: the official name, and the layout of its kernel.
NAMES = {
    # Beside the numbered layers
    "time_in": ("time_embed.0", DENSE),
    "time_out": ("time_embed.2", DENSE),
    "last_norm": ("out.0", SAME),
    "eps": ("out.2", CONV),
    # Residual blocks
    "norm_in": ("in_layers.0", SAME),
    "conv_in": ("in_layers.2", CONV),
    "embed": ("emb_layers.1", DENSE),
    "norm_out": ("out_layers.0", SAME),
    "conv_out": ("out_layers.3", CONV),
    "shortcut": ("skip_connection", POINTWISE),
    # Resampling
    "strided": ("op", CONV),
    "conv": ("conv", CONV),
    # Plain attention
    "norm": ("norm", SAME),
    "qkv": ("qkv", LINE),
    "project": ("proj_out", LINE),
    # Spatial transformers
    "enter": ("proj_in", POINTWISE),
    "leave": ("proj_out", POINTWISE),
    "norm_self": ("norm1", SAME),
    "attend_self": ("attn1", SAME),
    "norm_context": ("norm2", SAME),
    "attend_context": ("attn2", SAME),
    "norm_feed": ("norm3", SAME),
    "feed": ("ff", SAME),
    "query": ("to_q", DENSE),
    "key": ("to_k", DENSE),
    "value": ("to_v", DENSE),
    "join": ("to_out.0", DENSE),
    "widen": ("net.0.proj", DENSE),
    "narrow": ("net.2", DENSE),
}


# The same for names with numbers, as in `down_3_1`; one that is itself a layer is a convolution.
NUMBERED = {
    "down": "input_blocks",
    "middle": "middle_block",
    "up": "output_blocks",
    "block": "transformer_blocks",
}


def entries(expected: Variables) -> Iterator[Entry]:
    """Every tensor of a denoiser, or of a single one of its layers."""
    for path in flatten_dict(expected):
        _, *modules, leaf = path
        names = [_official(name) for name in modules]
        layout = names[-1][1] if leaf == "kernel" else SAME
        official = [name for name, _ in names]
        yield Entry(".".join([*official, "bias" if leaf == "bias" else "weight"]), path, layout)


def _official(name: str) -> tuple[str, Layout]:
    if name in NAMES:
        return NAMES[name]
    group, *numbers = name.split("_")
    return ".".join([NUMBERED[group], *numbers]), CONV


def ldm_unet_table(module: LDMUNet, channels: int) -> tuple[list[Entry], Variables]:
    """The table for inputs of `channels`, concatenated conditions included, and the shapes of our variables."""
    side = 2 ** (len(module.channel_mult) - 1)
    shapes = [(1, side, side, channels), (1,)]
    if module.context_width is not None:
        shapes.append((1, 1, module.context_width))
    _, expected = trace(module, *shapes)
    return list(entries(expected)), expected


def ldm_unet_variables(state: State, module: LDMUNet, channels: int) -> Variables:
    """Variables of `module` from the official state dict of a denoiser.

    Args:
        state: official names to tensors.
        module: the network with the settings of the checkpoint.
        channels: of its input, concatenated conditions included.

    Raises:
        ConversionError: if a tensor is missing, unknown or of another shape.
    """
    table, expected = ldm_unet_table(module, channels)
    return to_variables(table, state, expected)


def ldm_unet_state(variables: Variables, module: LDMUNet, channels: int) -> dict[str, np.ndarray]:
    """Inverse of `ldm_unet_variables`."""
    return to_state(ldm_unet_table(module, channels)[0], variables)
