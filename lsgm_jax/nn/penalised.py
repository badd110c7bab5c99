"""Which weights of a network penalties are about (`training/penalty.py`)."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from lsgm_jax.arrays import Params
from lsgm_jax.nn.network import trainable
from lsgm_jax.objectives.regularisers import Kernel


class Penalised(NamedTuple):
    """A network's convolutions, as they are applied, and its normalisations, by layer."""

    kernels: dict[str, Kernel]
    scales: dict[str, Float[Array, "_"]]


def penalised(params: Params) -> Penalised:
    """The weights of a network that applies its kernels as they are stored.

    Convolutions are the kernels with a window, and the shortcuts of residual blocks, which are 1 x 1.
    """
    kernels = by_layer(params, "kernel").items()
    convolutions = {
        layer: kernel for layer, kernel in kernels if kernel.ndim == 4 or layer.endswith("/shortcut")
    }
    return Penalised(convolutions, by_layer(params, "scale"))


def by_layer(tree: Params, name: str) -> dict[str, Array]:
    """The leaves called `name` of what is trained, by the path of their layer."""
    leaves = jax.tree_util.tree_leaves_with_path(trainable(tree))
    paths = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]
    ending = f"/{name}"
    return {path.removesuffix(ending): leaf for path, leaf in paths if path.endswith(ending)}
