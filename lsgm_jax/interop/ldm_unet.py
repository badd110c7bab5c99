"""Converts LDM's state dict of a denoiser to variables of `LDMUNet` and back.

Our layers have the official numbers (`down_3_1` is `input_blocks.3.1`), and every name of ours has one official
counterpart. The entry of a variable therefore follows from its path.
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

# A one-dimensional convolution of width one, which is a dense layer here.
LINE = Layout(lambda w: w[:, :, 0].T, lambda w: w.T[:, :, None])
# Our name -> the official name, and the layout of the kernel.
NAMES = {
    # Layers without numbers
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
# The same for names with numbers, as in `down_3_1`; a layer with such a name is a convolution.
NUMBERED = {
    "down": "input_blocks",
    "middle": "middle_block",
    "up": "output_blocks",
    "block": "transformer_blocks",
}


def entries(expected: Variables) -> Iterator[Entry]:
    """Yields the entries of a denoiser, or of one of its layers, from the tree of its variables."""
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
    """Returns the table for inputs of `channels`, concatenated conditions included, and the shapes of our variables."""
    side = 2 ** (len(module.channel_mult) - 1)
    shapes = [(1, side, side, channels), (1,)]
    if module.context_width is not None:
        shapes.append((1, 1, module.context_width))
    _, expected = trace(module, *shapes)
    return list(entries(expected)), expected


def ldm_unet_variables(state: State, module: LDMUNet, channels: int) -> Variables:
    """Returns the variables of `module` from the official state dict of a denoiser.

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
    """Returns the state dict: the inverse of `ldm_unet_variables`."""
    return to_state(ldm_unet_table(module, channels)[0], variables)
