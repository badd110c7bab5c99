"""Reads the weights of the published Inception from the file of pytorch-fid.

The file is `pt_inception-2015-12-05-6726825d.pth` of github.com/mseitzer/pytorch-fid, converted from TensorFlow.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from lsgm_jax.errors import ConversionError, in_one_line, printable
from lsgm_jax.evaluation.cache import digest
from lsgm_jax.evaluation.features import Extractor
from lsgm_jax.evaluation.inception import SIDE, Inception, features_of
from lsgm_jax.interop.checkpoint_file import read_checkpoint
from lsgm_jax.interop.tables import CONV, SAME, Entry, as_float32, to_variables
from lsgm_jax.numpy_files import read_npz

FEATURES, CLASSES = 2048, 1008
FILE = "pt_inception-2015-12-05-6726825d.pth"
# Name of a layer's variable here -> its name in the file, and the layout.
VARIABLES = {
    "kernel": ("weight", CONV),
    "scale": ("weight", SAME),
    "bias": ("bias", SAME),
    "mean": ("running_mean", SAME),
    "var": ("running_var", SAME),
}


def table() -> list[Entry]:
    """Returns all tensors of the network, with their names in the file and their paths here."""
    entries = []
    for path in flatten_dict(shapes()):
        name, layout = VARIABLES[path[-1]]
        entries.append(Entry(".".join((*path[1:-1], name)), path, layout))
    return entries


def read_inception(path: pathlib.Path) -> Extractor:
    """Reads the weights and returns the network as an extractor.

    Args:
        path: a `.pth` file of `torch.save`, or an `.npz` with the same names.

    Raises:
        ConversionError: if the file cannot be read or holds another network.
    """
    state = _read(path)
    classes = state["fc.weight"].shape[0] if "fc.weight" in state else CLASSES
    if classes != CLASSES or any(name.startswith("AuxLogits.") for name in state):
        raise ConversionError(
            f"{path}: torchvision's own InceptionV3, whose distances are none of the published ones: give {FILE}"
        )
    ignored = ("fc.", "num_batches_tracked")
    tensors = {
        name: value
        for name, value in state.items()
        if not (name.startswith(ignored[0]) or name.endswith(ignored[1]))
    }
    try:
        # Shapes come first: a small file can state tensors that are views of one number.
        found = to_variables(table(), tensors, shapes())
    except ConversionError as error:
        raise ConversionError(
            f"{path}: not the InceptionV3 of FID, {in_one_line(str(error))}: give {FILE}"
        ) from error
    _check_numbers(tensors, path)
    variables = as_float32(found)
    return Extractor("Inception", digest(variables), FEATURES, variables, features_of)


def shapes() -> dict[str, Any]:
    """Returns the shapes of the network's variables."""
    x = jnp.zeros((1, SIDE, SIDE, 3))
    return cast(dict[str, Any], jax.eval_shape(lambda: Inception().init(jax.random.key(0), x)))


def _check_numbers(tensors: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """Raises a ConversionError for a tensor that has anything but finite numbers."""
    for name, value in tensors.items():
        real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
        if not real or not np.isfinite(value.astype(np.float32)).all():
            raise ConversionError(
                f"{path}: {printable(name)} has values that are not finite numbers: get it again"
            )


def _read(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    if path.suffix == ".npz":
        return read_npz(path, path, error=ConversionError)
    state = read_checkpoint(path)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, np.ndarray) for name, value in state.items()
    ):
        raise ConversionError(f"{path}: no state dictionary of tensors: give {FILE}")
    return state
