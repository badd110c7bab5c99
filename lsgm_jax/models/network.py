"""The one boundary between Flax and everything else: a module becomes a pair of pure functions."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax
from flax import linen as nn
from jaxtyping import Array

from lsgm_jax.arrays import Key, Scalar

Params = Any


class Aux(NamedTuple):
    """What a loss returns beside its value."""

    metrics: dict[str, Scalar]
    # Parts of the parameters that no gradient moves and the loss has renewed: a tree that holds only these, in their
    # places, such as {"vae": {"batch_stats": ...}}.
    carried: Params
    # The weights that penalties may be about, by the network's name: see `penalised.Penalised`.
    penalised: Mapping[str, Any] = MappingProxyType({})
    # What the next step's loss wants to see of this one: see `step.Context`.
    memory: Any = ()


def constants(params: Params) -> Params:
    """The part of a `Network`'s parameters that never changes, such as fixed random frequencies, as `Aux.carried`."""
    return {"carried": params["carried"]} if "carried" in params else {}


@dataclasses.dataclass(frozen=True)
class Network:
    """`init` and `apply` of a Linen module whose only randomness is dropout.

    What the module stores beside its parameters is constant, and lies under "carried" among them.
    """

    module: nn.Module

    def init(self, key: Key, *example: Array) -> Params:
        """Parameters for inputs of the shapes of `example`."""
        variables = dict(self.module.init(key, *example, deterministic=True))
        params = variables.pop("params")
        return {**params, "carried": variables} if variables else params

    def apply(self, params: Params, *inputs: Array, dropout_key: Key | None = None) -> Array:
        """The output; dropout is on exactly if it is given a key."""
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        trained = {name: part for name, part in params.items() if name != "carried"}
        variables = {"params": trained, **jax.lax.stop_gradient(params.get("carried", {}))}
        output = self.module.apply(variables, *inputs, deterministic=rngs is None, rngs=rngs)
        return cast(Array, output)


@dataclasses.dataclass(frozen=True)
class StatefulNetwork:
    """`init` and `apply` of a Linen module with running statistics. Parameters: {"net", "carried"}."""

    module: nn.Module

    def init(self, key: Key, *example: Any) -> Params:
        """Parameters, and the module's other collections, for inputs like `example`."""
        variables = dict(self.module.init(key, *example, train=False))
        return {"net": variables.pop("params"), "carried": variables}

    def apply(
        self, params: Params, *inputs: Any, train: bool, method: str | None = None
    ) -> tuple[Any, Params, Params]:
        """The output; what it carries on (see `Aux`); and the kernels that it has applied, by the module's names.

        Of the last two there is nothing but in training.
        """
        variables = {"params": params["net"], **params["carried"]}
        if not train:
            return self.module.apply(variables, *inputs, train=False, method=method), {}, {}
        mutable = [*params["carried"], "kernels"]
        output, moved = self.module.apply(variables, *inputs, train=True, method=method, mutable=mutable)
        moved = dict(moved)
        kernels = moved.pop("kernels", {})
        return output, {"carried": moved}, kernels


def trainable(params: Params) -> Params:
    """The parameters without anything that is carried."""
    if not isinstance(params, dict):
        return params
    return {name: trainable(part) for name, part in params.items() if name != "carried"}


def split_or_none(key: Key | None, count: int) -> list[Key | None]:
    """`count` dropout keys, or as many `None` when dropout is off."""
    return [None] * count if key is None else list(jax.random.split(key, count))
