"""Building blocks that autoencoders and score networks share: one copy of each.

A layer computes in the dtype of the maps that it is given, and gives maps of that dtype; its parameters stay float32.
So whoever casts a network's input chooses the precision of all of it. Sums over many numbers and what decides about
small differences (statistics, softmax, the embedding of time) is float32 at least.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Maps = Float[Array, "batch height width channels"]
Resized = Float[Array, "batch new_height new_width new_channels"]
Embedding = Float[Array, "batch features"]
Tokens = Float[Array, "batch tokens width"]
Context = Float[Array, "batch context_tokens context_width"]
Heads = Float[Array, "batch tokens heads features"]
ContextHeads = Float[Array, "batch context_tokens heads features"]
Resample = Callable[[Maps], Resized]
# Uniform over plus or minus 1 / sqrt(fan in), with which PyTorch and so many published networks start.
FAN_IN_UNIFORM = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def at_least_float32(values: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """The values in float32, or in float64 if that is what they are."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def group_norm(h: Maps) -> Maps:
    """GroupNorm with the usual min(C / 4, 32) groups, reduced until they divide the channels; float32 statistics."""
    channels = h.shape[-1]
    groups = max(1, min(channels // 4, 32))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(num_groups=groups, epsilon=1e-6, dtype=h.dtype)(h)


LDM_GROUPS = 32  # of every normalisation, whatever the width


def ldm_group_norm(h: Maps, name: str, epsilon: float) -> Maps:
    """GroupNorm as latent diffusion has it; float32 statistics that do not cancel where features hardly vary."""
    norm = nn.GroupNorm(LDM_GROUPS, epsilon=epsilon, use_fast_variance=False, dtype=h.dtype, name=name)
    return norm(h)


def add_residual(skip: Maps, h: Maps, rescale: bool = True) -> Maps:
    """The sum of a block's input and output, over sqrt(2) to keep its variance."""
    total = skip + h
    return total / jnp.sqrt(2.0).astype(h.dtype) if rescale else total


def see_context(embedding: Embedding, context: Context | None) -> Embedding:
    """The embedding of time, moved by what the mean over a context's tokens says; without a context, as it is.

    The map is linear and starts at zero: a fresh network is the unconditional one bit for bit, whatever the context's
    scale, and the map learns as soon as the embedding does, because its own gradient does not vanish with it.

    Args:
        embedding: of the module that calls, which gets a layer named "context".
        context: a class is one token, a text many.
    """
    if context is None:
        return embedding
    mean = jnp.mean(at_least_float32(context), axis=1)
    effect = nn.Dense(embedding.shape[-1], use_bias=False, kernel_init=nn.initializers.zeros, name="context")
    return embedding + effect(mean)


class Block(nn.Module):
    """A part of a network whose inside need not be kept for the gradient, if that may compute it again."""


class ResBlock(Block):
    """Two normalised convolutions with a residual path; a time embedding, if given, shifts the features.

    The second convolution starts at zero, so that a fresh network is the identity up to its shortcuts.

    Attributes:
        channels: of the output.
        resample: applied to both paths, before the first convolution and the shortcut.
        rescale: whether the sum of both paths is divided by sqrt(2).
        kernel_init: of all kernels but the second convolution's.
        last_init: of the second convolution's kernel.
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
        h = nn.Conv(self.channels, (3, 3), kernel_init=self.kernel_init, dtype=h.dtype)(h)
        if embedding is not None:
            embed = nn.Dense(self.channels, kernel_init=self.kernel_init, name="embed")
            h = (h + embed(nn.swish(embedding))[:, None, None, :]).astype(h.dtype)
        h = nn.swish(group_norm(h))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        h = nn.Conv(self.channels, (3, 3), kernel_init=self.last_init, dtype=h.dtype)(h)
        return add_residual(skip, h, self.rescale)


class Attention(Block):
    """Single-head self-attention over all positions, residual; attributes as those of `ResBlock`."""

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
    """What each token finds in a context, by several heads side by side; only the map that joins them has a bias.

    Attributes:
        head_width: features of each head, whatever the width of the tokens.
        last_init: of the kernel that joins the heads.
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
    """Each token's mean of the values, weighted by the softmax over keys of query . key / sqrt(features).

    Flax's would take the softmax in bfloat16, or be left with weights in float32 for the product with the values.
    """
    query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    weights = jax.nn.softmax(at_least_float32(logits)).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def downsample(h: Maps) -> Resized:
    """Mean over 2 x 2 blocks."""
    return nn.avg_pool(h, (2, 2), strides=(2, 2))


def upsample(h: Maps) -> Resized:
    """Nearest-neighbour doubling."""
    return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
