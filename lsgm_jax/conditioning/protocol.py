"""From conditions to contexts: what a score network sees of the condition of a sample.

A condition (labels, word pieces, maps) has one row per sample. A `Conditioning` encodes it as the `Context` that score
networks take. It also knows the null condition, which training puts in place of some conditions, so that sampling
can be guided away from it (`guidance.py`).
"""

import dataclasses
import functools
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from lsgm_jax.arrays import Condition, Key, Latents, Params, Times
from lsgm_jax.nn.layers import Maps, Tokens
from lsgm_jax.nn.network import PLAINLY, Compute


class Context(NamedTuple):
    """What a score network sees of every sample besides (z_t, t); None for what there is not.

    Attributes:
        tokens: the network attends to them, or takes their mean, [batch, tokens, width].
        maps: concatenated to the channels of the latent, [batch, height, width, channels].
    """

    tokens: Tokens | None = None
    maps: Maps | None = None

    def inputs(self, z_t: Latents, t: Times) -> tuple[Array, ...]:
        """Returns the arguments of a score network."""
        seen = z_t if self.maps is None else jnp.concatenate([z_t, self.maps.astype(z_t.dtype)], axis=-1)
        return (seen, t) if self.tokens is None else (seen, t, self.tokens)


NO_CONTEXT = Context()


@runtime_checkable
class Conditioning(Protocol):
    """Encodes conditions as contexts.

    `source` says where the condition of a sample comes from: "labels" or "captions" of the data set, or None for
    a model without conditions from the data. `width` is that of its tokens, None if it has none.
    """

    @property
    def source(self) -> str | None:
        """Where conditions come from: "labels", "captions", or None."""
        ...

    @property
    def width(self) -> int | None:
        """The width of the tokens; None if a context has no tokens."""
        ...

    @property
    def dropout(self) -> float:
        """The probability with which training replaces a condition by the null condition."""
        ...

    def init(self, key: Key) -> Params:
        """Returns fresh parameters; {} if there are none."""
        ...

    def null(self, count: int) -> Condition:
        """Returns the null condition, `count` times."""
        ...

    def context(self, params: Params, condition: Condition, compute: Compute = PLAINLY) -> Context:
        """Encodes a condition.

        Args:
            compute: how the networks of a training step compute.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unconditional:
    """No condition and no context."""

    dropout: float = 0.0
    source = None
    width = None

    def init(self, key: Key) -> Params:
        """Returns {}: there are no parameters."""
        return {}

    def null(self, count: int) -> Condition:
        """Returns None."""
        return None

    def context(self, params: Params, condition: Condition, compute: Compute = PLAINLY) -> Context:
        """Returns the empty context, whatever the condition."""
        return NO_CONTEXT


UNCONDITIONAL = Unconditional()


def check_dropout(dropout: float) -> None:
    """Checks the probability of the null condition.

    Raises:
        ValueError: if it is not in [0, 1].
    """
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"dropout={dropout}: give a probability from 0 (never) to 1 (always)")


def encode_condition(
    conditioning: Conditioning,
    params: Params,
    condition: Condition,
    count: int,
    key: Key | None = None,
    compute: Compute = PLAINLY,
) -> Context:
    """Encodes the conditions of `count` samples as a context.

    Args:
        params: of the model; those of the conditioning lie under "conditioner", where there are any.
        condition: arrays [count, ...]; None for the null condition.
        key: in training, to replace each sample's condition by the null condition with probability `dropout`.
        compute: how networks compute in training.
    """
    null = conditioning.null(count)
    condition = null if condition is None else jax.tree.map(jnp.asarray, condition)
    if key is not None and conditioning.dropout:
        dropped = jax.random.bernoulli(key, conditioning.dropout, (count,))
        condition = jax.tree.map(functools.partial(_where, dropped), null, condition)
    return conditioning.context(params.get("conditioner", {}), condition, compute)


def init_conditioner(conditioning: Conditioning, key: Key) -> Params:
    """Returns {"conditioner": fresh parameters}, or {} for a conditioning without parameters."""
    params = conditioning.init(key)
    return {"conditioner": params} if params else {}


def _where(dropped: Bool[Array, "batch"], null: Array, given: Array) -> Array:
    return jnp.where(dropped.reshape(-1, *(1,) * (given.ndim - 1)), null, given)
