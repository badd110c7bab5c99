"""Conversion by table: pairs the tensors of a state dict with our variables, and converts their layouts.

PyTorch stores convolutions as (out, in, height, width) and dense layers as (out, in), Flax as (height, width, in, out)
and (in, out). A table works in both directions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from lsgm_jax.errors import ConversionError

State = Mapping[str, np.ndarray]
Path = tuple[str, ...]
Variables = dict[str, Any]


class Layout(NamedTuple):
    """The conversion of a tensor to ours, and back."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_official: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda w: w, lambda w: w)
DENSE = Layout(lambda w: w.T, lambda w: w.T)
CONV = Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
# A 1 x 1 convolution, which is a dense layer here.
POINTWISE = Layout(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])


class Entry(NamedTuple):
    """The official name of a tensor, the path of our variable (collection first), and the layout."""

    official: str
    path: Path
    layout: Layout = SAME


def to_variables(table: Sequence[Entry], state: State, expected: Variables) -> Variables:
    """Converts `state` to our variables.

    Args:
        table: entries of all tensors of the network.
        state: official names to tensors.
        expected: arrays or shapes of all variables of our module.

    Raises:
        ConversionError: if a tensor is missing, unknown or of another shape.
    """
    ours: dict[Path, Any] = dict(flatten_dict(expected))
    shapes = {entry.official: _official_shape(entry.layout, ours[entry.path].shape) for entry in table}
    _raise_if_any(
        {
            "missing": [name for name in shapes if name not in state],
            "unknown": [name for name in state if name not in shapes],
            "of another shape": [
                f"{name} {state[name].shape}, not {shape}"
                for name, shape in shapes.items()
                if name in state and state[name].shape != shape
            ],
        }
    )
    return unflatten_dict({entry.path: entry.layout.to_ours(state[entry.official]) for entry in table})


def to_state(table: Sequence[Entry], variables: Variables) -> dict[str, np.ndarray]:
    """Converts our variables to a state dict: the inverse of `to_variables`."""
    leaves: dict[Path, Any] = dict(flatten_dict(variables))
    return {entry.official: entry.layout.to_official(np.asarray(leaves[entry.path])) for entry in table}


def _official_shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    return layout.to_official(np.broadcast_to(np.float32(0.0), shape)).shape  # views, without allocation


def _raise_if_any(faults: Mapping[str, Sequence[str]]) -> None:
    messages = [f"tensors {what}: {listing(names)}" for what, names in faults.items() if names]
    if messages:
        raise ConversionError("; ".join(messages))


def listing(names: Sequence[str], most: int = 5) -> str:
    """Returns the first names for a message, and the count of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class Call(NamedTuple):
    """A call of a layer directly below the top of a network."""

    name: str
    kind: type[nn.Module]


def trace(module: nn.Module, *shapes: tuple[int, ...]) -> tuple[list[Call], Variables]:
    """Returns the layers in the order of calls, and the shapes of the variables, for inputs of `shapes`."""
    calls: list[Call] = []

    def record(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__" and len(context.module.path) == 1:
            calls.append(Call(context.module.path[0], type(context.module)))
        return method(*args, **kwargs)

    def init() -> Variables:
        inputs = (jnp.zeros(shape) for shape in shapes)
        return cast(Variables, module.init(jax.random.key(0), *inputs, deterministic=True))

    with nn.intercept_methods(record):
        variables = jax.eval_shape(init)
    return calls, variables


def as_float32(tree: Any) -> Any:
    """Returns float32 copies; the arrays of a file may be half precision, and are views of the file."""
    return jax.tree.map(lambda leaf: np.array(leaf, np.float32, order="C"), tree)
