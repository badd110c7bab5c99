"""The EMA of a network's parameters, in the three forms in which checkpoints store it.

LSGM stores it in the state of the optimiser, next to Adam's moments, and CLD-SGM in a list. Both number the tensors, in
the order of the network's parameters. Other checkpoints have a second state dict with names.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.search import Found
from lsgm_jax.interop.tables import State

# Parameters that are not trained, so an EMA may lack them: the frequencies of Fourier features.
FIXED = re.compile(r"all_modules\.\d+\.W")


def is_ema(found: Found) -> bool:
    """Returns whether a key on the path to `found` contains "ema"."""
    return any("ema" in key.lower() for key in found.keys)


def numbered_emas(found: Iterable[Found], state: State) -> Iterator[Found]:
    """Yields EMA state dicts from optimisers and lists; their names are those of `state`, in its order."""
    for item in found:
        if not isinstance(item.value, Mapping):
            continue
        if (tensors := _of_optimiser(item.value)) is not None:
            yield Found(item.keys, _named(tensors, state))
        if isinstance(listed := item.value.get("shadow_params"), list | tuple):
            yield Found((*item.keys, "shadow_params"), _named(listed, state))


def _of_optimiser(value: Mapping[Any, Any]) -> list[Any] | None:
    """Returns the entries `ema` of an optimiser's state in the order of its parameters; None if there are none."""
    state, groups = value.get("state"), value.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, list | tuple):
        return None
    order = [index for group in groups for index in group["params"]]
    tensors = [state.get(index, {}).get("ema") for index in order]
    return None if all(tensor is None for tensor in tensors) else tensors


def _named(tensors: Sequence[Any], state: State) -> State:
    """Assigns names to tensors. Surplus tensors keep their numbers; entries without a tensor are dropped."""
    trained = [name for name in state if not FIXED.fullmatch(name)]
    names = list(state) if len(tensors) == len(state) else trained
    names += [f"number {index}" for index in range(len(names), len(tensors))]
    return {name: t for name, t in zip(names, tensors, strict=False) if isinstance(t, np.ndarray)}


def fitting_ema(emas: Sequence[Found], state: State) -> State | None:
    """Returns the one EMA that fits `state`, completed by the fixed tensors of `state`; None if there is no EMA.

    Raises:
        ConversionError: if several fit, or none; then the error names the first misfitting tensor of each.
    """
    misfits = [(ema, _misfit(ema.value, state)) for ema in emas]
    fitting = [ema for ema, misfit in misfits if misfit is None]
    if len(fitting) > 1:
        raise ConversionError(
            f"has {len(fitting)} EMAs of the score network, {', '.join(ema.place for ema in fitting)}: "
            "save it again with one of them"
        )
    if misfits and not fitting:
        reasons = "; ".join(f"{ema.place}: {misfit}" for ema, misfit in misfits)
        raise ConversionError(
            f"has an EMA, but not of its score network ({reasons}): save it again with the one that belongs to it, "
            "or without"
        )
    return {**state, **fitting[0].value} if fitting else None


def _misfit(ema: State, state: State) -> str | None:
    """Returns a description of the first tensor that does not fit; None if all fit."""
    for name, tensor in state.items():
        if name not in ema:
            if not FIXED.fullmatch(name):
                return f"{name} is missing"
        elif ema[name].shape != tensor.shape:
            return f"{name} is {ema[name].shape}, not {tensor.shape}"
    unknown = [name for name in ema if name not in state]
    return f"{unknown[0]} is unknown" if unknown else None
