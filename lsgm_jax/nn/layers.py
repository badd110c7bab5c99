"""Layers that autoencoders and score networks share.

A layer computes in the dtype of its input feature maps and returns maps of that dtype; its parameters stay float32.
The caller therefore chooses the precision of a whole network by casting its input. Long sums and operations that are
sensitive to rounding (normalisation statistics, softmax, the time embedding) use at least float32.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.arrays import at_least_float32
from lsgm_jax.nn.convolution import Maps, Resized, flax_convolution

Embedding = Float[Array, "batch features"]
Tokens = Float[Array, "batch tokens width"]
Context = Float[Array, "batch context_tokens context_width"]
Heads = Float[Array, "batch tokens heads features"]
ContextHeads = Float[Array, "batch context_tokens heads features"]
Resample = Callable[[Maps], Resized]
# Uniform on [-1 / sqrt(fan_in), 1 / sqrt(fan_in)], the default of PyTorch and of the networks published with it.
FAN_IN_UNIFORM = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def group_norm(h: Maps) -> Maps:
    """Applies GroupNorm with min(C / 4, 32) groups, reduced until they divide the channels; float32 statistics."""
    channels = h.shape[-1]
    groups = max(1, min(channels // 4, 32))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(num_groups=groups, epsilon=1e-6, dtype=h.dtype)(h)


# `nn.Conv`, whose derivatives are fast on CPU too, and in loops.
Conv = functools.partial(nn.Conv, conv_general_dilated=flax_convolution)

LDM_GROUPS = 32  # of every GroupNorm, for any number of channels


def ldm_group_norm(h: Maps, name: str, epsilon: float) -> Maps:
    """Applies the GroupNorm of latent diffusion (LDM), with 32 groups.

    The statistics are float32. The variance is the mean of (h - mean)^2, as E[h^2] - mean^2 cancels for almost constant
    features.
    """
    norm = nn.GroupNorm(LDM_GROUPS, epsilon=epsilon, use_fast_variance=False, dtype=h.dtype, name=name)
    return norm(h)


def add_residual(skip: Maps, h: Maps, rescale: bool = True) -> Maps:
    """Returns skip + h, divided by sqrt(2) to preserve the variance if `rescale`."""
    total = skip + h
    return total / jnp.sqrt(2.0).astype(h.dtype) if rescale else total


def dropout(h: Float[Array, "*leading channels"], rate: float, *, deterministic: bool) -> Array:
    """Applies `nn.Dropout` to a matrix with the entries of `h`, which compiles sooner (see `arrays.draw_array`)."""
    rows = h.reshape(-1, h.shape[-1])
    return nn.Dropout(rate, deterministic=deterministic)(rows).reshape(h.shape)


def see_context(embedding: Embedding, context: Context | None) -> Embedding:
    """Adds a linear map of the mean context token to the time embedding.

    The map starts at zero: a freshly initialised network equals the unconditional one bit for bit, at any scale of the
    context. The gradient of the map does not vanish at zero, so it learns as soon as the embedding does.

    Args:
        embedding: time embedding of the calling module, which gets a submodule named "context".
        context: one token for a class label, several for a text; None for no context.

    Returns:
        The shifted embedding; without a context, `embedding` itself.
    """
    if context is None:
        return embedding
    mean = jnp.mean(at_least_float32(context), axis=1)
    effect = nn.Dense(embedding.shape[-1], use_bias=False, kernel_init=nn.initializers.zeros, name="context")
    return embedding + effect(mean)


class Block(nn.Module):
    """A module whose intermediate activations may be recomputed in the backward pass (rematerialisation)."""


class ResBlock(Block):
    """Residual block: twice GroupNorm, swish and a 3 x 3 convolution, [batch, h, w, c] -> [batch, h', w', channels].

    A time embedding [batch, features], if given, shifts the features between the two convolutions. The second
    convolution starts at zero, so that a fresh block is the identity up to its shortcut and the factor 1 / sqrt(2).

    Attributes:
        channels: output channels.
        dropout: dropout rate before the second convolution.
        resample: function applied to both paths, before the first convolution and the shortcut; None for none.
        rescale: whether the sum of both paths is divided by sqrt(2).
        kernel_init: initialiser of all kernels except that of the second convolution.
        last_init: initialiser of the kernel of the second convolution.
    """

    channels: int
    dropout: float = 0.0
    resample: Resample | None = None
    rescale: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    last_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, h: Maps, embedding: Embedding | None = None, *, deterministic: bool) -> Resized:
        skip, h = h, nn.swish(group_norm(h))
        if self.resample is not None:
            skip, h = self.resample(skip), self.resample(h)
        if self.resample is not None or skip.shape[-1] != self.channels:
            shortcut = nn.Dense(
                self.channels, kernel_init=self.kernel_init, dtype=skip.dtype, name="shortcut"
            )
            skip = shortcut(skip)
        h = Conv(self.channels, (3, 3), kernel_init=self.kernel_init, dtype=h.dtype)(h)
        if embedding is not None:
            embed = nn.Dense(self.channels, kernel_init=self.kernel_init, name="embed")
            h = (h + embed(nn.swish(embedding))[:, None, None, :]).astype(h.dtype)
        h = nn.swish(group_norm(h))
        h = dropout(h, self.dropout, deterministic=deterministic)
        h = Conv(self.channels, (3, 3), kernel_init=self.last_init, dtype=h.dtype)(h)
        return add_residual(skip, h, self.rescale)


class Attention(Block):
    """Residual single-head self-attention over all positions of feature maps, [batch, h, w, c] -> the same shape.

    Attributes:
        rescale: whether the sum of input and attention is divided by sqrt(2).
        kernel_init: initialiser of the query, key and value kernels.
        last_init: initialiser of the output kernel.
    """

    rescale: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    last_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, h: Maps) -> Maps:
        batch, height, width, channels = h.shape
        tokens = group_norm(h).reshape(batch, height * width, channels)
        attention = nn.MultiHeadDotProductAttention(
            num_heads=1,
            kernel_init=self.kernel_init,
            out_kernel_init=self.last_init,
            attention_fn=attend,
            dtype=h.dtype,
        )
        return add_residual(h, attention(tokens).reshape(h.shape), self.rescale)


class TokenAttention(nn.Module):
    """Multi-head cross-attention of tokens [batch, tokens, width] to a context, without a residual connection.

    The context has shape [batch, context_tokens, context_width], the output that of the tokens. Only the output
    projection has a bias.

    Attributes:
        heads: number of attention heads.
        head_width: features per head, independent of the width of the tokens.
        last_init: initialiser of the kernel of the output projection.
    """

    heads: int
    head_width: int
    last_init: nn.initializers.Initializer = FAN_IN_UNIFORM

    @nn.compact
    def __call__(self, tokens: Tokens, context: Context) -> Tokens:
        width = self.heads * self.head_width
        dense = functools.partial(nn.Dense, dtype=tokens.dtype)

        def heads_of(source: Array, name: str) -> Array:
            projected = dense(width, use_bias=False, kernel_init=FAN_IN_UNIFORM, name=name)(source)
            return projected.reshape(*source.shape[:2], self.heads, self.head_width)

        found = attend(heads_of(tokens, "query"), heads_of(context, "key"), heads_of(context, "value"))
        join = dense(tokens.shape[-1], kernel_init=self.last_init, name="join")
        return join(found.reshape(*tokens.shape[:2], width))


def attend(query: Heads, key: ContextHeads, value: ContextHeads) -> Heads:
    """Computes scaled dot-product attention: softmax over keys of query . key / sqrt(features), times the values.

    The softmax is computed in at least float32 and its weights are cast to the dtype of the values. The function of
    Flax would compute it in bfloat16, or multiply float32 weights with the values.
    """
    query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    weights = jax.nn.softmax(at_least_float32(logits)).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def downsample(h: Maps) -> Resized:
    """Halves height and width by the mean over 2 x 2 blocks."""
    return nn.avg_pool(h, (2, 2), strides=(2, 2))


def upsample(h: Maps) -> Resized:
    """Doubles height and width by nearest-neighbour interpolation."""
    return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
