"""The one boundary between Flax and everything else: a module becomes a pair of pure functions."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array

from lsgm_jax.arrays import Key, Params, Scalar
from lsgm_jax.nn.layers import Block

Forward = Callable[..., Any]  # of variables, maps and other inputs
DTYPES = ("float32", "bfloat16")


class Aux(NamedTuple):
    """What a loss returns beside its value."""

    metrics: dict[str, Scalar]
    # Parts of the parameters that no gradient moves and the loss has renewed: a tree that holds only these, in their
    # places, such as {"vae": {"batch_stats": ...}}.
    state: Params
    # The weights that penalties may be about, by the network's name: see `penalised.Penalised`.
    penalised: Mapping[str, Any] = MappingProxyType({})
    # What the next step's loss wants to see of this one: see `step.Context`.
    memory: Any = ()


def constants(params: Params) -> Params:
    """The part of a `Network`'s parameters that never changes, such as fixed random frequencies, as `Aux.state`."""
    return {"state": params["state"]} if "state" in params else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """How networks compute in a training step; parameters, densities and losses are float32 all the same.

    Sampling and evaluation always use float32: an adaptive solver takes the rounding of bfloat16 for an error.

    Attributes:
        dtype: of the maps between layers, "bfloat16", or "float32" for that of the network's input.
        remat: keeps only what goes into blocks, and computes their inside once more for the gradient.
    """

    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is none of {', '.join(DTYPES)}")

    def __call__(self, forward: Forward) -> Forward:
        """`forward(variables, maps, *others)` as it is to be computed; of its inputs the maps alone are cast."""
        if self.dtype != "float32":
            forward = _cast(forward, jnp.dtype(self.dtype))
        return self.blocks(forward)

    def blocks(self, forward: Forward) -> Forward:
        """`forward` with its blocks as they are to be computed, and inputs as they are: they may be integers."""
        return _blocks_again(forward) if self.remat else forward


PLAINLY = Compute()


def _blocks_again(forward: Forward) -> Forward:
    """Every `Block` computed once more for the gradient, when that comes to it.

    One `jax.checkpoint` of the whole network that keeps what blocks give on would store as little between the passes,
    but XLA may then compute all blocks again at once. Around a single block, it has to wait for that block's gradient.
    """
    inside = []

    def intercept(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        block = context.module
        if inside or not isinstance(block, Block) or context.method_name != "__call__":
            return call(*args, **kwargs)

        def again(block: Block, *arrays: Array) -> Array:
            inside.append(block)
            try:
                return block(*arrays, **kwargs)  # pyright: ignore[reportCallIssue]
            finally:
                inside.pop()

        return nn.remat(again)(block, *args)

    def intercepted(*inputs: Any) -> Any:
        with nn.intercept_methods(intercept):
            return forward(*inputs)

    return intercepted


def _cast(forward: Forward, dtype: np.dtype) -> Forward:
    """Casts the maps that go in, and back whatever comes out in that dtype."""

    def cast_forward(variables: Params, maps: Any, *others: Any) -> Any:
        given = jax.tree.leaves(maps)[0].dtype
        lowered = jax.tree.map(lambda leaf: leaf.astype(dtype), maps)
        output = forward(variables, lowered, *others)
        return jax.tree.map(lambda leaf: leaf.astype(given) if leaf.dtype == dtype else leaf, output)

    return cast_forward


@dataclasses.dataclass(frozen=True)
class Network:
    """`init` and `apply` of a Linen module whose only randomness is dropout.

    What the module stores beside its parameters is constant, and lies under "state" among them.
    """

    module: nn.Module
    compute: Compute = PLAINLY

    def init(self, key: Key, *example: Array) -> Params:
        """Parameters for inputs of the shapes of `example`."""
        variables = dict(self.module.init(key, *example, deterministic=True))
        params = variables.pop("params")
        return {**params, "state": variables} if variables else params

    def apply(self, params: Params, *inputs: Array, dropout_key: Key | None = None) -> Array:
        """The output; dropout is on exactly if it is given a key, which is in training."""
        forward = self._forward(dropout_key)
        return (forward if dropout_key is None else self.compute(forward))(_variables(params), *inputs)

    def apply_frozen(self, params: Params, *inputs: Array) -> Array:
        """The output in a training step of other networks: computed as there, but without dropout."""
        return self.compute(self._forward(None))(_variables(params), *inputs)

    def _forward(self, dropout_key: Key | None) -> Callable[..., Array]:
        rngs = None if dropout_key is None else {"dropout": dropout_key}

        def forward(variables: Params, *inputs: Array) -> Array:
            output = self.module.apply(variables, *inputs, deterministic=rngs is None, rngs=rngs)
            return cast(Array, output)

        return forward


def _variables(params: Params) -> Params:
    trained = {name: part for name, part in params.items() if name != "state"}
    return {"params": trained, **jax.lax.stop_gradient(params.get("state", {}))}


@dataclasses.dataclass(frozen=True)
class StatefulNetwork:
    """`init` and `apply` of a Linen module with running statistics. Parameters: {"net", "state"}."""

    module: nn.Module
    compute: Compute = PLAINLY

    def init(self, key: Key, *example: Any) -> Params:
        """Parameters, and the module's other collections, for inputs like `example`."""
        variables = dict(self.module.init(key, *example, train=False))
        return {"net": variables.pop("params"), "state": variables}

    def apply(
        self, params: Params, *inputs: Any, train: bool, method: str | None = None
    ) -> tuple[Any, Params, Params]:
        """The output; what it carries on (see `Aux`); and the kernels that it has applied, by the module's names.

        Of the last two there is nothing but in training.
        """
        mutable = [*params["state"], "kernels"] if train else False

        def forward(variables: Params, *inputs: Any) -> Any:
            return self.module.apply(variables, *inputs, train=train, method=method, mutable=mutable)

        variables = {"params": params["net"], **params["state"]}
        if not train:
            return forward(variables, *inputs), {}, {}
        output, moved = self.compute(forward)(variables, *inputs)
        moved = dict(moved)
        kernels = moved.pop("kernels", {})
        return output, {"state": moved}, kernels


def trainable(params: Params) -> Params:
    """The parameters without anything that is state."""
    if not isinstance(params, dict):
        return params
    return {name: trainable(part) for name, part in params.items() if name != "state"}


def split_or_none(key: Key | None, count: int) -> list[Key | None]:
    """`count` dropout keys, or as many `None` when dropout is off."""
    return [None] * count if key is None else list(jax.random.split(key, count))
