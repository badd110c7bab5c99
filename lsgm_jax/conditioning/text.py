"""Texts as contexts: LDM's transformer over word pieces, which is trained with the denoiser."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int

from lsgm_jax.nn.layers import FAN_IN_UNIFORM, Block, TokenAttention, Tokens

WordPieces = Int[Array, "batch tokens"]
EMBEDDING_INIT = nn.initializers.normal(0.02)


class TextEncoder(nn.Module):
    """A context of one token per word piece; nothing is masked, neither the future nor what fills up a text.

    Attributes:
        vocabulary: word pieces that there are.
        length: the most that a text has.
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

    @nn.compact
    def __call__(self, pieces: WordPieces) -> Tokens:
        count = pieces.shape[1]
        if count > self.length:
            raise ValueError(f"a text of {count} word pieces: at most length={self.length} have a position")
        token = nn.Embed(self.vocabulary, self.width, embedding_init=EMBEDDING_INIT, name="pieces")
        position = nn.Embed(self.length, self.width, embedding_init=EMBEDDING_INIT, name="positions")
        tokens = token(pieces) + position(jnp.arange(count))
        for index in range(self.layers):
            tokens = TextLayer(self.heads, self.head_width, name=f"layer_{index}")(tokens)
        return _layer_norm("norm")(tokens)


class TextLayer(Block):
    """Self-attention and a feed-forward layer of four times the width, each normalised before and residual."""

    heads: int
    head_width: int

    @nn.compact
    def __call__(self, tokens: Tokens) -> Tokens:
        width = tokens.shape[-1]
        attend = TokenAttention(self.heads, self.head_width, name="attend")
        normed = _layer_norm("norm_attend")(tokens)
        tokens = tokens + attend(normed, normed)
        wide = nn.Dense(4 * width, kernel_init=FAN_IN_UNIFORM, name="widen")(_layer_norm("norm_feed")(tokens))
        narrow = nn.Dense(width, kernel_init=FAN_IN_UNIFORM, name="narrow")
        return tokens + narrow(nn.gelu(wide, approximate=False))


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)
