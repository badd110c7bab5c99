"""Class labels as conditions."""

import dataclasses
from typing import cast

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from lsgm_jax.arrays import Condition, Key, Params
from lsgm_jax.conditioning.protocol import Context, check_dropout
from lsgm_jax.nn.layers import Tokens
from lsgm_jax.nn.network import PLAINLY, Compute

ClassLabels = Int[Array, "batch"]
OneToken = Float[Array, "batch 1 width"]


class ClassEmbedding(nn.Module):
    """Class labels [batch] to contexts of one learned token per class, [batch, 1, width].

    Attributes:
        classes: number of classes; a network for guidance has one more, which stands for none of them.
        width: of the token.
    """

    classes: int
    width: int

    @nn.compact
    def __call__(self, labels: ClassLabels) -> OneToken:
        table = nn.Embed(self.classes, self.width, embedding_init=nn.initializers.normal(1.0), name="table")
        return table(labels)[:, None, :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Classes 0 to `classes` - 1, each a learned token; one more token is the null condition.

    Attributes:
        width: of the tokens.
        dropout: probability of the null condition in training.
    """

    classes: int
    width: int = 128
    dropout: float = 0.1
    source = "labels"

    def __post_init__(self):
        if min(self.classes, self.width) < 1:
            raise ValueError(f"classes={self.classes}, width={self.width}: give positive numbers")
        check_dropout(self.dropout)

    def init(self, key: Key) -> Params:
        """Returns a fresh table of tokens."""
        return self.net.init(key, self.null(1))["params"]

    def null(self, count: int) -> ClassLabels:
        """Returns the label after the last, `count` times."""
        return jnp.full(count, self.classes, jnp.int32)

    def context(self, params: Params, condition: Condition, compute: Compute = PLAINLY) -> Context:
        """Returns one token per sample."""
        return Context(tokens=cast(Tokens, self.net.apply({"params": params}, condition)))

    @property
    def net(self) -> ClassEmbedding:
        """The table as a module."""
        return ClassEmbedding(self.classes + 1, self.width)
