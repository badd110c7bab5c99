"""State dicts of LDM first stages: autoencoder, discriminator and perceptual distance.

The official name of a tensor follows from the path of our variable; a table translates all paths.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from lsgm_jax.autoencoders.discriminator import PatchDiscriminator
from lsgm_jax.autoencoders.ldm import Decoder, Encoder
from lsgm_jax.autoencoders.perceptual import LPIPS
from lsgm_jax.autoencoders.quantiser import Quantiser
from lsgm_jax.interop.tables import (
    CONV,
    POINTWISE,
    SAME,
    Entry,
    Layout,
    Path,
    State,
    Variables,
    to_state,
    to_variables,
)

Shapes = Variables
# One value per channel, with axes of length one around it.
CHANNELS = Layout(lambda w: w.reshape(-1), lambda w: w.reshape(1, -1, 1, 1))
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
COUNTER = ".num_batches_tracked"

# Our name of a module -> the official one. TOWER stands for the official name of the levels, `TOWERS`.
TOWERS = {"encoder": "down", "decoder": "up"}
STEPS = {
    r"stem": r"conv_in",
    r"block_(\d+)_(\d+)": r"TOWER.\1.block.\2",
    r"attention_(\d+)_(\d+)": r"TOWER.\1.attn.\2",
    r"down_(\d+)": r"TOWER.\1.downsample.conv",
    r"up_(\d+)": r"TOWER.\1.upsample.conv",
    r"middle": r"mid",
    r"block_0": r"block_1",
    r"block_1": r"block_2",
    r"attention": r"attn_1",
    r"norm_0": r"norm1",
    r"conv_0": r"conv1",
    r"norm_1": r"norm2",
    r"conv_1": r"conv2",
    r"shortcut": r"nin_shortcut",
    r"norm": r"norm",
    r"query": r"q",
    r"key": r"k",
    r"value": r"v",
    r"out": r"proj_out",
    r"last_norm": r"norm_out",
    r"trunk|image": r"conv_out",
}
LATENT = {"encoder": "quant_conv", "decoder": "post_quant_conv"}


class AutoencoderParts(NamedTuple):
    """The modules whose tensors are in the state dict of an autoencoder."""

    encoder: Encoder
    decoder: Decoder
    quantiser: Quantiser | None = None  # None in a KL model


def first_stage_variables(state: State, parts: AutoencoderParts) -> Variables:
    """Returns the variables {"encoder", "decoder"}, and "codebook" of a VQ model; dtypes do not change.

    Raises:
        ConversionError: if tensors are unknown, missing or of another shape than the modules'.
    """
    shapes = first_stage_shapes(parts)
    return to_variables(table(shapes, _first_stage_name), state, shapes)


def first_stage_state(variables: Mapping[str, Any], parts: AutoencoderParts) -> dict[str, np.ndarray]:
    """Returns the state dict: the inverse of `first_stage_variables`."""
    return to_state(table(first_stage_shapes(parts), _first_stage_name), dict(variables))


def first_stage_shapes(parts: AutoencoderParts) -> Shapes:
    """Returns the shapes of the variables, which do not depend on the image size. Allocates no arrays."""
    encode = functools.partial(parts.encoder.init, deterministic=True)
    decode = functools.partial(parts.decoder.init, deterministic=True)
    side = 2 ** (len(parts.encoder.levels.channel_mult) - 1)
    channels = parts.encoder.features if parts.quantiser else parts.encoder.features // 2
    shapes = {
        "encoder": _shapes(encode, (1, side, side, parts.decoder.out_channels)),
        "decoder": _shapes(decode, (1, 1, 1, channels)),
    }
    if parts.quantiser is None:
        return shapes
    return {**shapes, "codebook": jax.eval_shape(parts.quantiser.init, jax.random.key(0))}


def _first_stage_name(path: Path) -> str:
    if path == ("codebook",):
        return "quantize.embedding.weight"
    half, _, *modules, leaf = path
    if modules == ["latent"]:
        return f"{LATENT[half]}.{LEAVES[leaf]}"
    steps = [_step(name).replace("TOWER", TOWERS[half]) for name in modules]
    return ".".join((half, *steps, LEAVES[leaf]))


def _step(name: str) -> str:
    for pattern, official in STEPS.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(official)
    raise KeyError(name)


def discriminator_variables(state: State, module: PatchDiscriminator) -> Variables:
    """Returns {"params", "batch_stats"} of a discriminator of colour images; raises like `first_stage_variables`."""
    tensors = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    shapes = _discriminator_shapes(module)
    return to_variables(table(shapes, _discriminator_name(module)), tensors, shapes)


def discriminator_state(variables: Mapping[str, Any], module: PatchDiscriminator) -> dict[str, np.ndarray]:
    """Returns the state dict: the inverse of `discriminator_variables`, without counters of batches."""
    return to_state(table(_discriminator_shapes(module), _discriminator_name(module)), dict(variables))


def _discriminator_shapes(module: PatchDiscriminator) -> Shapes:
    side = 2 ** (module.layers + 2)
    return _shapes(functools.partial(module.init, train=False), (1, side, side, 3))


def _discriminator_name(module: PatchDiscriminator) -> Callable[[Path], str]:
    """Returns the name function: layers are numbered in the order of calls, activations included."""
    numbers = {"conv_0": 0, "logit": 3 * module.layers + 2}
    for index in range(1, module.layers + 1):
        numbers |= {f"conv_{index}": 3 * index - 1, f"norm_{index}": 3 * index}
    return lambda path: f"main.{numbers[path[1]]}.{LEAVES[path[2]]}"


def lpips_variables(state: State, module: LPIPS) -> Variables:
    """Returns {"params", "constants"} of the perceptual distance; raises like `first_stage_variables`."""
    shapes = _lpips_shapes(module)
    return to_variables(table(shapes, _lpips_name(module)), state, shapes)


def lpips_state(variables: Mapping[str, Any], module: LPIPS) -> dict[str, np.ndarray]:
    """Returns the state dict: the inverse of `lpips_variables`."""
    return to_state(table(_lpips_shapes(module), _lpips_name(module)), dict(variables))


def _lpips_shapes(module: LPIPS) -> Shapes:
    side = 2 ** (len(module.widths) - 1)
    return _shapes(module.init, (1, side, side, 3), (1, side, side, 3))


def _lpips_name(module: LPIPS) -> Callable[[Path], str]:
    """Returns the name function: convolutions have VGG16's layer numbers, which count activations and poolings."""

    def name(path: Path) -> str:
        if path[1] == "standardise":
            return f"scaling_layer.{path[2]}"
        if path[1] != "features":
            return f"lin{path[1].removeprefix('head_')}.model.1.weight"
        group, index = map(int, path[2].split("_")[1:])
        before = 2 * sum(module.convolutions[:group]) + group
        return f"net.slice{group + 1}.{before + 2 * index}.{LEAVES[path[3]]}"

    return name


def table(shapes: Shapes, name: Callable[[Path], str]) -> list[Entry]:
    """Returns the entries of all variables; `name` maps a path to the official name."""
    leaves: dict[Path, Any] = dict(flatten_dict(shapes))
    return [Entry(name(path), path, _layout(path, leaf.ndim)) for path, leaf in leaves.items()]


def _layout(path: Path, axes: int) -> Layout:
    if path[-1] == "kernel":
        return CONV if axes == 4 else POINTWISE
    return CHANNELS if path[0] == "constants" or path[-1].startswith("head_") else SAME


def _shapes(init: Callable[..., Any], *inputs: tuple[int, ...]) -> Shapes:
    return jax.eval_shape(init, jax.random.key(0), *(jax.ShapeDtypeStruct(s, jnp.float32) for s in inputs))
