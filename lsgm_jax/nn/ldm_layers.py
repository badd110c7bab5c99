"""Parts of LDM's denoiser (Rombach et al. 2022): residual blocks that see the time, attention, resampling.

Unlike those of NCSN++ they keep sums as they are, always normalise 32 groups, and halve with convolutions that pad one
pixel on all four sides.
"""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.arrays import Times, in_steps
from lsgm_jax.nn.layers import (
    FAN_IN_UNIFORM,
    Block,
    Context,
    Embedding,
    Maps,
    Resample,
    Resized,
    TokenAttention,
    Tokens,
    attend,
    ldm_group_norm,
    upsample,
)

EPSILON = 1e-5  # of normalisations, but for those before spatial transformers
Initializer = nn.initializers.Initializer
ZEROS = nn.initializers.zeros


def conv(
    channels: int, like: Array, name: str, kernel_init: Initializer = FAN_IN_UNIFORM, stride: int = 1
) -> nn.Conv:
    """A 3 x 3 convolution, in the dtype of `like`; if it strides, its first pixel is the maps' first."""
    padding = ((1, 1), (1, 1))  # SAME would put none before the first pixel of a side that is even
    return nn.Conv(channels, (3, 3), stride, padding, kernel_init=kernel_init, dtype=like.dtype, name=name)


def dense(width: int, like: Array, name: str, kernel_init: Initializer = FAN_IN_UNIFORM) -> nn.Dense:
    """A dense layer, which on maps is a 1 x 1 convolution, in the dtype of `like`."""
    return nn.Dense(width, kernel_init=kernel_init, dtype=like.dtype, name=name)


def layer_norm(tokens: Tokens, name: str) -> Tokens:
    """LayerNorm with float32 statistics that do not cancel."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=tokens.dtype, name=name)(tokens)


def timestep_embedding(index: Float[Array, "batch"], features: int) -> Embedding:
    """Cosines, then sines, of the timestep at frequencies 10000^(-i / half); a zero fills up an odd number."""
    half = features // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / half)
    angles = index[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features % 2)))


def embed_time(t: Times, steps: int, features: int, width: int) -> Embedding:
    """Two dense layers, "time_in" and "time_out", of the timestep's embedding; timestep i is at t = (i + 1) / steps."""
    embedding = timestep_embedding(in_steps(t, steps) - 1.0, features)
    hidden = dense(width, embedding, "time_in")(embedding)
    return dense(width, embedding, "time_out")(nn.swish(hidden))


class ResidualBlock(Block):
    """Two normalised convolutions beside a shortcut, which is a 1 x 1 convolution if the width changes.

    Attributes:
        channels: of the output.
        scale_shift: the time scales and shifts the features after the second norm, instead of shifting them before.
        resample: applied to both paths, before the first convolution and the shortcut.
    """

    channels: int
    dropout: float = 0.0
    scale_shift: bool = False
    resample: Resample | None = None

    @nn.compact
    def __call__(self, h: Maps, embedding: Embedding, *, deterministic: bool) -> Resized:
        skip, h = h, nn.swish(ldm_group_norm(h, "norm_in", EPSILON))
        if self.resample is not None:
            skip, h = self.resample(skip), self.resample(h)
        if skip.shape[-1] != self.channels:
            skip = dense(self.channels, skip, "shortcut")(skip)
        h = conv(self.channels, h, "conv_in")(h)
        h = nn.swish(self._see_time(h, embedding))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        return skip + conv(self.channels, h, "conv_out", ZEROS)(h)

    def _see_time(self, h: Maps, embedding: Embedding) -> Maps:
        """Normalised features with what the time does to them."""
        embed = dense((1 + self.scale_shift) * self.channels, embedding, "embed")
        effect = embed(nn.swish(embedding))[:, None, None, :]
        if not self.scale_shift:
            return ldm_group_norm((h + effect).astype(h.dtype), "norm_out", EPSILON)
        scale, shift = jnp.split(effect, 2, axis=-1)
        return (ldm_group_norm(h, "norm_out", EPSILON) * (1.0 + scale) + shift).astype(h.dtype)


class SelfAttention(Block):
    """Self-attention over all positions, residual. Each head has its query, key and value side by side in `qkv`."""

    heads: int

    @nn.compact
    def __call__(self, h: Maps) -> Maps:
        batch, height, width, channels = h.shape
        qkv = dense(3 * channels, h, "qkv")(ldm_group_norm(h, "norm", EPSILON))
        each = qkv.reshape(batch, height * width, self.heads, 3 * channels // self.heads)
        found = attend(*jnp.split(each, 3, axis=-1)).reshape(h.shape)
        return h + dense(channels, h, "project", ZEROS)(found)


class SpatialTransformer(Block):
    """A transformer whose tokens are the positions of the maps, row by row, and which looks at a context; residual."""

    heads: int
    depth: int = 1

    @nn.compact
    def __call__(self, h: Maps, context: Context) -> Maps:
        batch, height, width, channels = h.shape
        tokens = dense(channels, h, "enter")(ldm_group_norm(h, "norm", 1e-6))
        tokens = tokens.reshape(batch, height * width, channels)
        for index in range(self.depth):
            tokens = TransformerBlock(self.heads, name=f"block_{index}")(tokens, context)
        return h + dense(channels, h, "leave", ZEROS)(tokens).reshape(h.shape)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, and a gated feed-forward layer, each normalised before and residual."""

    heads: int

    @nn.compact
    def __call__(self, tokens: Tokens, context: Context) -> Tokens:
        head_width = tokens.shape[-1] // self.heads
        attention = functools.partial(TokenAttention, self.heads, head_width)
        normed = layer_norm(tokens, "norm_self")
        tokens = tokens + attention(name="attend_self")(normed, normed)
        normed = layer_norm(tokens, "norm_context")
        tokens = tokens + attention(name="attend_context")(normed, context)
        return tokens + GatedFeedForward(name="feed")(layer_norm(tokens, "norm_feed"))


class GatedFeedForward(nn.Module):
    """Values times the exact GELU of their gates, both four times as wide as the tokens, and back."""

    @nn.compact
    def __call__(self, tokens: Tokens) -> Tokens:
        width = tokens.shape[-1]
        value, gate = jnp.split(dense(8 * width, tokens, "widen")(tokens), 2, axis=-1)
        return dense(width, tokens, "narrow")(value * nn.gelu(gate, approximate=False))


class Halve(nn.Module):
    """A convolution that keeps every second pixel; sides that are odd are rounded up."""

    channels: int

    @nn.compact
    def __call__(self, h: Maps) -> Resized:
        return conv(self.channels, h, "strided", stride=2)(h)


class Double(nn.Module):
    """Every pixel repeated 2 x 2, then a convolution."""

    channels: int

    @nn.compact
    def __call__(self, h: Maps) -> Resized:
        return conv(self.channels, h, "conv")(upsample(h))
