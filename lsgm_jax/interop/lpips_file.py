"""Published weights of LPIPS: the features of VGG16 and the linear heads, in one file or two."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lsgm_jax.autoencoders.perceptual import LPIPS, SCALE, SHIFT
from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.checkpoint_file import read_checkpoint
from lsgm_jax.interop.ldm_autoencoder import lpips_variables
from lsgm_jax.interop.search import Found, containers, state_dicts
from lsgm_jax.interop.tables import State, Variables, as_float32

# The first group of each is the prefix of the names.
ALL = re.compile(r"(.*\.)?net\.slice1\.0\.weight")
HEADS = re.compile(r"(.*\.)?lin0\.model\.1\.weight")
VGG = re.compile(r"(.*\.)?features\.0\.weight")
OURS = re.compile(r"net\.slice\d\.\d+\.(weight|bias)|lin\d\.model\.1\.weight|scaling_layer\.(shift|scale)")
FEATURE = re.compile(r"features\.(\d+)\.(weight|bias)")
ENDS = (4, 9, 16, 23, 30)  # of the groups of VGG16's layers
# The standardisation of colours, for files without it.
STANDARD = {
    f"scaling_layer.{name}": np.asarray(values, np.float32).reshape(1, 3, 1, 1)
    for name, values in (("shift", SHIFT), ("scale", SCALE))
}


def read_lpips(paths: str) -> Variables:
    """Returns the variables of `LPIPS`, float32.

    Args:
        paths: one file with all weights, alone or within a checkpoint of a first stage; or two files separated by a
            comma, torchvision's VGG16 and the heads, in any order.

    Raises:
        ConversionError: if a file cannot be read, or weights are missing.
    """
    names = [path.strip() for path in paths.split(",")]
    if len(names) > 2 or not all(names):
        raise ConversionError(f"{paths!r} are no paths of one file or two, with a comma between")
    found = [item for name in names for item in containers(read_checkpoint(name))]
    try:
        return as_float32(lpips_variables({**STANDARD, **_state(found)}, LPIPS()))
    except ConversionError as error:
        raise ConversionError(f"{paths}: {error}") from error


def _state(found: Sequence[Found]) -> State:
    """Returns the weights under the names of taming-transformers."""
    if tensors := _first(found, ALL):
        return {name: tensor for name, tensor in tensors.items() if OURS.fullmatch(name)}
    heads, vgg = _first(found, HEADS), _first(found, VGG)
    if heads and vgg:
        return {**_as_slices(vgg), **{name: t for name, t in heads.items() if OURS.fullmatch(name)}}
    if vgg:
        raise ConversionError(
            "holds VGG16 without the heads lin*.model.1.weight: add their file after a comma"
        )
    if heads:
        raise ConversionError("holds heads without VGG16: add torchvision's file after a comma")
    raise ConversionError("holds no LPIPS: no tensor is called net.slice1.0.weight, or features.0.weight")


def _first(found: Sequence[Found], name: re.Pattern[str]) -> State:
    """Returns the first state dict with `name`; others, such as in the condition of a full model, are equal."""
    return next((item.value for item in state_dicts(found, name)), {})


def _as_slices(vgg: State) -> dict[str, Any]:
    """Renames the features of torchvision's VGG16 to those of LPIPS; the classifier is dropped."""
    matches = {name: match for name in vgg if (match := FEATURE.fullmatch(name))}
    group = lambda layer: 1 + sum(layer >= end for end in ENDS)
    return {
        f"net.slice{group(int(match[1]))}.{match[1]}.{match[2]}": vgg[name] for name, match in matches.items()
    }
