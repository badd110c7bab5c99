"""Reads the weights of the published Inception from the file of pytorch-fid.

The file is `pt_inception-2015-12-05-6726825d.pth` of github.com/mseitzer/pytorch-fid, converted from TensorFlow.
"""

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from lsgm_jax.errors import ConversionError
from lsgm_jax.evaluation.cache import digest
from lsgm_jax.evaluation.features import Extractor
from lsgm_jax.evaluation.inception import SIDE, Inception, features_of
from lsgm_jax.interop.checkpoint_file import read_checkpoint
from lsgm_jax.interop.tables import CONV, SAME, Entry, to_variables

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
        name: np.asarray(value, np.float32)
        for name, value in state.items()
        if not (name.startswith(ignored[0]) or name.endswith(ignored[1]))
    }
    try:
        variables = to_variables(table(), tensors, shapes())
    except ConversionError as error:
        raise ConversionError(f"{path}: not the InceptionV3 of FID, {error}: give {FILE}") from error
    return Extractor("Inception", digest(variables), FEATURES, variables, features_of)


def shapes() -> dict[str, Any]:
    """Returns the shapes of the network's variables."""
    x = jnp.zeros((1, SIDE, SIDE, 3))
    return cast(dict[str, Any], jax.eval_shape(lambda: Inception().init(jax.random.key(0), x)))


def _read(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    if path.suffix == ".npz":
        try:
            with np.load(path) as file:
                return dict(file)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ConversionError(f"{path}: cannot be read ({error})") from error
    state = read_checkpoint(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise ConversionError(f"{path}: no state dictionary of tensors: give {FILE}")
    return state
