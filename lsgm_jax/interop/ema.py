"""The moving average of a network's parameters, in the three ways in which checkpoints keep one.

LSGM keeps it in the optimiser's state, beside Adam's moments, and CLD-SGM in a list; both only number the tensors, in
the order of the network's parameters. Others keep a second state dict, with names.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.search import Found
from lsgm_jax.interop.tables import State

# Parameters that no optimiser moves, so that an average may leave them out: the frequencies of Fourier features.
FIXED = re.compile(r"all_modules\.\d+\.W")


def is_average(found: Found) -> bool:
    """Whether the keys that lead there say that it is an average."""
    return any("ema" in key.lower() for key in found.keys)


def numbered_averages(found: Iterable[Found], state: State) -> Iterator[Found]:
    """Averages in optimisers and lists, with the names of `state` in the order of its tensors."""
    for item in found:
        if not isinstance(item.value, Mapping):
            continue
        if (tensors := _of_optimiser(item.value)) is not None:
            yield Found(item.keys, _named(tensors, state))
        if isinstance(listed := item.value.get("shadow_params"), list | tuple):
            yield Found((*item.keys, "shadow_params"), _named(listed, state))


def _of_optimiser(value: Mapping[Any, Any]) -> list[Any] | None:
    """The entries `ema` of an optimiser's state in the order of its parameters; None where there are none."""
    state, groups = value.get("state"), value.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, list | tuple):
        return None
    order = [index for group in groups for index in group["params"]]
    tensors = [state.get(index, {}).get("ema") for index in order]
    return None if all(tensor is None for tensor in tensors) else tensors


def _named(tensors: Sequence[Any], state: State) -> State:
    """Numbers beyond the last name stay numbers; what is no tensor, since it was never moved, is left out."""
    moved = [name for name in state if not FIXED.fullmatch(name)]
    names = list(state) if len(tensors) == len(state) else moved
    names += [f"number {index}" for index in range(len(names), len(tensors))]
    return {name: t for name, t in zip(names, tensors, strict=False) if isinstance(t, np.ndarray)}


def fitting_average(averages: Sequence[Found], state: State) -> State | None:
    """The one average that fits `state`, with the fixed tensors that it leaves out; None if there are no averages.

    Raises:
        ConversionError: if none fits, which names the first tensor of each that does not, or if several do.
    """
    misfits = [(average, _misfit(average.value, state)) for average in averages]
    fitting = [average for average, misfit in misfits if misfit is None]
    if len(fitting) > 1:
        raise ConversionError(
            f"has {len(fitting)} averages of the score network, {', '.join(average.place for average in fitting)}: "
            "save it again with one of them"
        )
    if misfits and not fitting:
        reasons = "; ".join(f"{average.place}: {misfit}" for average, misfit in misfits)
        raise ConversionError(
            f"has an average, but not of its score network ({reasons}): save it again with the one that belongs to it, "
            "or without"
        )
    return {**state, **fitting[0].value} if fitting else None


def _misfit(average: State, state: State) -> str | None:
    """What is wrong with the first tensor that does not fit."""
    for name, tensor in state.items():
        if name not in average:
            if not FIXED.fullmatch(name):
                return f"{name} is missing"
        elif average[name].shape != tensor.shape:
            return f"{name} is {average[name].shape}, not {tensor.shape}"
    unknown = [name for name in average if name not in state]
    return f"{unknown[0]} is unknown" if unknown else None
