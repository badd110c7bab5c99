"""Layers of the LDM denoiser (Rombach et al. 2022): time-conditioned residual blocks, attention, resampling.

Unlike those of NCSN++ they do not rescale residual sums, always use 32 groups in GroupNorm, and downsample with
convolutions that pad one pixel on all four sides.
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
    Conv,
    Embedding,
    Maps,
    Resample,
    Resized,
    TokenAttention,
    Tokens,
    attend,
    dropout,
    ldm_group_norm,
    upsample,
)
from lsgm_jax.nn.repeat import chain

EPSILON = 1e-5  # of GroupNorm, except before spatial transformers
Initializer = nn.initializers.Initializer
ZEROS = nn.initializers.zeros


def conv(
    channels: int, like: Array, name: str, kernel_init: Initializer = FAN_IN_UNIFORM, stride: int = 1
) -> nn.Conv:
    """Builds a 3 x 3 convolution in the dtype of `like`, with one pixel of padding on all four sides.

    With stride 2, the first output is centred on the first input pixel.
    """
    padding = ((1, 1), (1, 1))  # "SAME" with stride 2 does not pad before the first pixel of an even size
    return Conv(channels, (3, 3), stride, padding, kernel_init=kernel_init, dtype=like.dtype, name=name)


def dense(width: int, like: Array, name: str, kernel_init: Initializer = FAN_IN_UNIFORM) -> nn.Dense:
    """Builds a dense layer in the dtype of `like`; on feature maps it is a 1 x 1 convolution."""
    return nn.Dense(width, kernel_init=kernel_init, dtype=like.dtype, name=name)


def layer_norm(tokens: Tokens, name: str) -> Tokens:
    """Applies LayerNorm with float32 statistics; the variance is the mean of (tokens - mean)^2."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=tokens.dtype, name=name)(tokens)


def timestep_embedding(index: Float[Array, "batch"], features: int) -> Embedding:
    """Computes cosines, then sines, of the timestep at frequencies 10000^(-i / half), [batch, features].

    An odd number of features ends with a zero.
    """
    half = features // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / half)
    angles = index[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features % 2)))


def embed_time(t: Times, steps: int, features: int, width: int) -> Embedding:
    """Embeds the time with two dense layers, "time_in" and "time_out", on the timestep embedding.

    Args:
        t: times; timestep i is at t = (i + 1) / steps.
        steps: number of timesteps of the discrete process.
        features: length of the timestep embedding.
        width: output features.
    """
    embedding = timestep_embedding(in_steps(t, steps) - 1.0, features)
    hidden = dense(width, embedding, "time_in")(embedding)
    return dense(width, embedding, "time_out")(nn.swish(hidden))


class ResidualBlock(Block):
    """Residual block with a time embedding: twice GroupNorm, swish and a 3 x 3 convolution.

    It maps [batch, h, w, c] and the embedding [batch, features] to [batch, h', w', channels]. The shortcut is a 1 x 1
    convolution if the number of channels changes, and the identity otherwise.

    Attributes:
        channels: output channels.
        dropout: dropout rate before the second convolution.
        scale_shift: whether the time embedding scales and shifts the features after the second norm, instead of
            shifting them before it.
        resample: function applied to both paths, before the first convolution and the shortcut; None for none.
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
        h = nn.swish(self._condition_on_time(h, embedding))
        h = dropout(h, self.dropout, deterministic=deterministic)
        return skip + conv(self.channels, h, "conv_out", ZEROS)(h)

    def _condition_on_time(self, h: Maps, embedding: Embedding) -> Maps:
        """Applies the second norm and the shift, or scale and shift, of the time embedding."""
        embed = dense((1 + self.scale_shift) * self.channels, embedding, "embed")
        effect = embed(nn.swish(embedding))[:, None, None, :]
        if not self.scale_shift:
            return ldm_group_norm((h + effect).astype(h.dtype), "norm_out", EPSILON)
        scale, shift = jnp.split(effect, 2, axis=-1)
        return (ldm_group_norm(h, "norm_out", EPSILON) * (1.0 + scale) + shift).astype(h.dtype)


class SelfAttention(Block):
    """Residual multi-head self-attention over all positions of feature maps, [batch, h, w, c] -> the same shape.

    The features of `qkv` are ordered by head, and within a head as query, key and value.

    Attributes:
        heads: number of attention heads.
    """

    heads: int

    @nn.compact
    def __call__(self, h: Maps) -> Maps:
        batch, height, width, channels = h.shape
        qkv = dense(3 * channels, h, "qkv")(ldm_group_norm(h, "norm", EPSILON))
        each = qkv.reshape(batch, height * width, self.heads, 3 * channels // self.heads)
        found = attend(*jnp.split(each, 3, axis=-1)).reshape(h.shape)
        return h + dense(channels, h, "project", ZEROS)(found)


class SpatialTransformer(Block):
    """Residual transformer with cross-attention, whose tokens are the positions of feature maps in row-major order.

    It maps [batch, h, w, c] and the context [batch, context_tokens, context_width] to [batch, h, w, c].

    Attributes:
        heads: number of attention heads.
        depth: number of transformer blocks.
    """

    heads: int
    depth: int = 1

    @nn.compact
    def __call__(self, h: Maps, context: Context) -> Maps:
        batch, height, width, channels = h.shape
        tokens = dense(channels, h, "enter")(ldm_group_norm(h, "norm", 1e-6))
        tokens = tokens.reshape(batch, height * width, channels)
        blocks = [TransformerBlock(self.heads, name=f"block_{i}") for i in range(self.depth)]
        tokens = chain(blocks, tokens, context)
        return h + dense(channels, h, "leave", ZEROS)(tokens).reshape(h.shape)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context and a gated feed-forward layer, all pre-norm and residual.

    It maps tokens [batch, tokens, width] and the context [batch, context_tokens, context_width] to the tokens' shape.

    Attributes:
        heads: number of attention heads.
    """

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
    """Feed-forward layer GEGLU of tokens [batch, tokens, width]: dense(value * GELU(gate)).

    Values and gates have 4 width features each; the GELU is exact.
    """

    @nn.compact
    def __call__(self, tokens: Tokens) -> Tokens:
        width = tokens.shape[-1]
        value, gate = jnp.split(dense(8 * width, tokens, "widen")(tokens), 2, axis=-1)
        return dense(width, tokens, "narrow")(value * nn.gelu(gate, approximate=False))


class Halve(nn.Module):
    """3 x 3 convolution with stride 2, [batch, h, w, c] -> [batch, h / 2, w / 2, channels]; rounds odd sizes up."""

    channels: int

    @nn.compact
    def __call__(self, h: Maps) -> Resized:
        return conv(self.channels, h, "strided", stride=2)(h)


class Double(nn.Module):
    """Nearest-neighbour upsampling and a 3 x 3 convolution, [batch, h, w, c] -> [batch, 2 h, 2 w, channels]."""

    channels: int

    @nn.compact
    def __call__(self, h: Maps) -> Resized:
        return conv(self.channels, h, "conv")(upsample(h))
