"""Texts as conditions: LDM's transformer over word pieces, which is trained with the score network."""

import dataclasses
import functools
from typing import cast

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int

from lsgm_jax.arrays import Condition, Key, Params
from lsgm_jax.conditioning.protocol import Context, check_dropout
from lsgm_jax.nn.layers import FAN_IN_UNIFORM, Block, TokenAttention, Tokens, at_least_float32
from lsgm_jax.nn.network import PLAINLY, Compute
from lsgm_jax.nn.repeat import chain

WordPieces = Int[Array, "batch tokens"]
EMBEDDING_INIT = nn.initializers.normal(0.02)


class TextEncoder(nn.Module):
    """Word pieces [batch, tokens] to contexts of one token each, [batch, tokens, width].

    Nothing is masked, neither the future nor the padding. The layers compute in `dtype`; the tokens that are returned
    are at least float32.

    Attributes:
        vocabulary: number of word pieces.
        length: greatest length of a text.
        width: of the tokens.
        layers: of attention and feed-forward.
        heads: of attention.
        head_width: features of each head, whatever the width of the tokens.
    """

    vocabulary: int
    length: int
    width: int
    layers: int
    heads: int = 8
    head_width: int = 64
    dtype: str = "float32"

    @nn.compact
    def __call__(self, pieces: WordPieces) -> Tokens:
        count = pieces.shape[1]
        if count > self.length:
            raise ValueError(f"a text of {count} word pieces: at most length={self.length} have a position")
        token = nn.Embed(self.vocabulary, self.width, embedding_init=EMBEDDING_INIT, name="pieces")
        position = nn.Embed(self.length, self.width, embedding_init=EMBEDDING_INIT, name="positions")
        tokens = token(pieces) + position(jnp.arange(count))
        if self.dtype != "float32":  # which stands for the dtype of the parameters, as in `Compute`
            tokens = tokens.astype(self.dtype)
        layers = [TextLayer(self.heads, self.head_width, name=f"layer_{i}") for i in range(self.layers)]
        tokens = chain(layers, tokens)
        return at_least_float32(_layer_norm(tokens, "norm"))


class TextLayer(Block):
    """Self-attention and a feed-forward layer of four times the width, each normalised before and residual."""

    heads: int
    head_width: int

    @nn.compact
    def __call__(self, tokens: Tokens) -> Tokens:
        width = tokens.shape[-1]
        attend = TokenAttention(self.heads, self.head_width, name="attend")
        normed = _layer_norm(tokens, "norm_attend")
        tokens = tokens + attend(normed, normed)
        dense = functools.partial(nn.Dense, kernel_init=FAN_IN_UNIFORM, dtype=tokens.dtype)
        wide = dense(4 * width, name="widen")(_layer_norm(tokens, "norm_feed"))
        return tokens + dense(width, name="narrow")(nn.gelu(wide, approximate=False))


def _layer_norm(tokens: Tokens, name: str) -> Tokens:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=tokens.dtype, name=name)(tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts as word pieces, which a transformer encodes; it is trained with the prior. The empty text is the null one.

    Attributes:
        pieces: size of the vocabulary, or more.
        length: of a text, in word pieces; shorter ones are padded with piece 0.
        width: of the tokens.
        layers, heads, head_width: of the transformer; see `TextEncoder`.
        dropout: probability of the null condition in training.
        empty: pieces of the empty text, its beginning and its end; (101, 102) in BERT's own vocabulary.
        vocabulary: file of one piece per line; "" to train one on the captions of the training split.
    """

    pieces: int
    length: int = 77
    width: int = 128
    layers: int = 4
    heads: int = 8
    head_width: int = 64
    dropout: float = 0.1
    empty: tuple[int, ...] = (2, 3)
    vocabulary: str = ""
    source = "captions"

    def __post_init__(self):
        for name in ("pieces", "width", "layers", "heads", "head_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")
        if not len(self.empty) <= self.length:
            raise ValueError(f"length={self.length}: a text has {len(self.empty)} pieces at least")
        if not 0 <= max(self.empty) < self.pieces:
            raise ValueError(f"empty={self.empty}: there are only {self.pieces} word pieces")
        check_dropout(self.dropout)

    def init(self, key: Key) -> Params:
        """Returns fresh parameters of the transformer."""
        return self.net.init(key, self.null(1))["params"]

    def null(self, count: int) -> WordPieces:
        """Returns the empty text, `count` times."""
        pieces = (*self.empty, *(0,) * (self.length - len(self.empty)))
        return jnp.tile(jnp.asarray(pieces, jnp.int32), (count, 1))

    def context(self, params: Params, condition: Condition, compute: Compute = PLAINLY) -> Context:
        """Returns one token per word piece."""
        net = self.net.clone(dtype=compute.dtype)
        forward = compute.blocks(lambda variables, pieces: net.apply(variables, pieces))
        return Context(tokens=cast(Tokens, forward({"params": params}, condition)))

    @property
    def net(self) -> TextEncoder:
        """The transformer as a module."""
        return TextEncoder(self.pieces, self.length, self.width, self.layers, self.heads, self.head_width)
