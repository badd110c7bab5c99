"""The one boundary between Flax and everything else: a module becomes a pair of pure functions."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Network:
    """`init` and `apply` of a Linen module whose only randomness is dropout."""

    module: nn.Module

    def init(self, key: Key, *example: Array) -> Params:
        """Parameters for inputs of the shapes of `example`."""
        return self.module.init(key, *example, deterministic=True)["params"]

    def apply(self, params: Params, *inputs: Array, dropout_key: Key | None = None) -> Array:
        """The output; dropout is on exactly if it is given a key."""
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        output = self.module.apply({"params": params}, *inputs, deterministic=rngs is None, rngs=rngs)
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
    ) -> tuple[Any, Params]:
        """The output and what it carries on (see `Aux`): the statistics that training has moved, else nothing."""
        variables = {"params": params["net"], **params["carried"]}
        if not train:
            return self.module.apply(variables, *inputs, train=False, method=method), {}
        mutable = list(params["carried"])
        output, carried = self.module.apply(variables, *inputs, train=True, method=method, mutable=mutable)
        return output, {"carried": carried}


def split_or_none(key: Key | None, count: int) -> list[Key | None]:
    """`count` dropout keys, or as many `None` when dropout is off."""
    return [None] * count if key is None else list(jax.random.split(key, count))
