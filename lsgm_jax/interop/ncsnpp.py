"""Score networks of LSGM and CLD-SGM: their state dicts and settings.

The official NCSN++ numbers its layers in the order of calls, `all_modules.0`, `all_modules.1`, .... A trace of ours
has the same order, which gives the table. LSGM's state dict has the mixing logits too, which belong to the model here
and not to the network; `mixing_logit` reads them.
"""

from collections.abc import Iterator

import numpy as np
from flax import linen as nn

from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.tables import (
    CONV,
    DENSE,
    POINTWISE,
    SAME,
    Call,
    Entry,
    Layout,
    Path,
    State,
    Variables,
    to_state,
    to_variables,
    trace,
)
from lsgm_jax.nn.layers import Attention, ResBlock
from lsgm_jax.nn.mlp import MLP
from lsgm_jax.nn.ncsnpp import NCSNpp
from lsgm_jax.nn.ncsnpp_layers import FourierFeatures, PyramidDown

MIXING_LOGIT = "mixing_logit"
Shape = tuple[int, ...]
Row = tuple[str, Path, Layout]


def _layer(official: str, path: Path, layout: Layout) -> list[Row]:
    """Returns weight and bias of a convolution or dense layer."""
    return [(f"{official}weight", (*path, "kernel"), layout), (f"{official}bias", (*path, "bias"), SAME)]


def _norm(official: str, path: Path) -> list[Row]:
    return [(f"{official}weight", (*path, "scale"), SAME), (f"{official}bias", (*path, "bias"), SAME)]


def _attention() -> list[Row]:
    """Returns the dense layers of attention, stored as (in, out); ours have another axis for the single head."""
    here: Path = ("MultiHeadDotProductAttention_0",)
    split = Layout(lambda w: w[..., None, :], lambda w: w[..., 0, :])
    merge = Layout(lambda w: w[None], lambda w: w[0])
    rows = _norm("GroupNorm_0.", ("GroupNorm_0",))
    for index, name in enumerate(("query", "key", "value")):
        rows += [(f"NIN_{index}.W", (*here, name, "kernel"), split)]
        rows += [(f"NIN_{index}.b", (*here, name, "bias"), split)]
    return [*rows, ("NIN_3.W", (*here, "out", "kernel"), merge), ("NIN_3.b", (*here, "out", "bias"), SAME)]


# By kind of layer: the official names within it, our paths, and the layouts.
ROWS: dict[type[nn.Module], list[Row]] = {
    nn.Dense: _layer("", (), DENSE),
    nn.Conv: _layer("", (), CONV),
    nn.GroupNorm: _norm("", ()),
    ResBlock: [
        *_norm("GroupNorm_0.", ("GroupNorm_0",)),
        *_layer("Conv_0.", ("Conv_0",), CONV),
        *_layer("Dense_0.", ("embed",), DENSE),
        *_norm("GroupNorm_1.", ("GroupNorm_1",)),
        *_layer("Conv_1.", ("Conv_1",), CONV),
        *_layer("Conv_2.", ("shortcut",), POINTWISE),
    ],
    Attention: _attention(),
    PyramidDown: _layer("Conv2d_0.", ("Conv_0",), CONV),
    FourierFeatures: [("W", ("frequencies",), SAME)],
}


def ncsnpp_table(module: NCSNpp, shape: Shape) -> tuple[list[Entry], Variables]:
    """Returns the table for latents of `shape` (height, width, channels), and the shapes of our variables."""
    calls, expected = trace(module, (1, *shape), (1,))
    return list(_entries(calls, expected)), expected


def _entries(calls: list[Call], expected: Variables) -> Iterator[Entry]:
    for index, layer in enumerate(calls):
        collection = "constants" if layer.kind is FourierFeatures else "params"
        for official, path, layout in ROWS[layer.kind]:
            # Blocks that neither resample nor change the width have no shortcut.
            if path[:1] == ("shortcut",) and "shortcut" not in expected["params"][layer.name]:
                continue
            yield Entry(f"all_modules.{index}.{official}", (collection, layer.name, *path), layout)


def ncsnpp_variables(state: State, module: NCSNpp, shape: Shape) -> Variables:
    """Returns the variables of `module` from the official state dict.

    Args:
        state: official names to tensors; LSGM's mixing logits are ignored, see `mixing_logit`.
        module: the network with the settings of the checkpoint.
        shape: (height, width, channels) of its input; the size decides which maps get attention.

    Raises:
        ConversionError: if a tensor is missing, unknown or of another shape.
    """
    table, expected = ncsnpp_table(module, shape)
    return to_variables(table, {k: v for k, v in state.items() if k != MIXING_LOGIT}, expected)


def ncsnpp_state(variables: Variables, module: NCSNpp, shape: Shape) -> dict[str, np.ndarray]:
    """Returns the state dict: the inverse of `ncsnpp_variables`."""
    return to_state(ncsnpp_table(module, shape)[0], variables)


def mixing_logit(state: State) -> np.ndarray:
    """Returns LSGM's mixing logits [channels], parameters of the model.

    Raises:
        ConversionError: if the state dict has none, because it was trained without mixing.
    """
    if MIXING_LOGIT not in state:
        raise ConversionError(f"tensors missing: {MIXING_LOGIT}")
    return state[MIXING_LOGIT].reshape(-1)


def mlp_variables(state: State, module: MLP, features: int) -> Variables:
    """Returns the variables of CLD's MLP for inputs of `features` without time; raises like `ncsnpp_variables`."""
    calls, expected = trace(module, (1, features), (1,))
    # Activations have a number but no tensors.
    table = [
        Entry(f"main.{2 * index}.{official}", ("params", layer.name, *path), layout)
        for index, layer in enumerate(calls)
        for official, path, layout in ROWS[layer.kind]
    ]
    return to_variables(table, state, expected)


def lsgm_channel_mult(dataset: str, scales: int) -> tuple[int, ...]:
    """Returns LSGM's channel multipliers, from the name of the data set and, at 256 x 256, the number of scales.

    Raises:
        ValueError: for a number of scales that has no rule.
    """
    if dataset in ("mnist", "omniglot", "cifar10"):
        return (1,) * scales
    rule = {3: (1, 1, 1), 4: (1, 2, 2, 2), 5: (1, 1, 2, 2, 2)}
    if scales not in rule:
        raise ValueError(f"scales={scales} for {dataset!r}: use one of {', '.join(map(str, rule))}")
    return rule[scales]
