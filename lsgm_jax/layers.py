"""Building blocks that autoencoders and score networks share: one copy of each."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Maps = Float[Array, "batch height width channels"]
Resized = Float[Array, "batch new_height new_width new_channels"]
Embedding = Float[Array, "batch features"]


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the usual min(C / 4, 32) groups, reduced until they divide the channels."""
    groups = max(1, min(channels // 4, 32))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(num_groups=groups, epsilon=1e-6)


class ResBlock(nn.Module):
    """Two normalised convolutions with a residual path; a time embedding, if given, shifts the features.

    The second convolution starts at zero, so that a fresh network is the identity up to its shortcuts.
    """

    channels: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, h: Maps, embedding: Embedding | None = None, *, deterministic: bool) -> Resized:
        skip = h if h.shape[-1] == self.channels else nn.Dense(self.channels, name="shortcut")(h)
        h = nn.Conv(self.channels, (3, 3))(nn.swish(group_norm(h.shape[-1])(h)))
        if embedding is not None:
            h += nn.Dense(self.channels, name="embed")(nn.swish(embedding))[:, None, None, :]
        h = nn.swish(group_norm(self.channels)(h))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        h = nn.Conv(self.channels, (3, 3), kernel_init=nn.initializers.zeros)(h)
        return (skip + h) / jnp.sqrt(2.0).astype(h.dtype)


class Attention(nn.Module):
    """Single-head self-attention over all positions, residual."""

    @nn.compact
    def __call__(self, h: Maps) -> Maps:
        batch, height, width, channels = h.shape
        tokens = group_norm(channels)(h).reshape(batch, height * width, channels)
        tokens = nn.MultiHeadDotProductAttention(num_heads=1, out_kernel_init=nn.initializers.zeros)(tokens)
        return (h + tokens.reshape(h.shape)) / jnp.sqrt(2.0).astype(h.dtype)


def downsample(h: Maps) -> Resized:
    """Mean over 2 x 2 blocks."""
    return nn.avg_pool(h, (2, 2), strides=(2, 2))


def upsample(h: Maps) -> Resized:
    """Nearest-neighbour doubling."""
    return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
