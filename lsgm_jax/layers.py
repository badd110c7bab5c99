"""Building blocks that autoencoders and score networks share: one copy of each."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Maps = Float[Array, "batch height width channels"]
Resized = Float[Array, "batch new_height new_width new_channels"]
Embedding = Float[Array, "batch features"]
Resample = Callable[[Maps], Resized]


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the usual min(C / 4, 32) groups, reduced until they divide the channels."""
    groups = max(1, min(channels // 4, 32))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(num_groups=groups, epsilon=1e-6)


def add_residual(skip: Maps, h: Maps, rescale: bool = True) -> Maps:
    """The sum of a block's input and output, over sqrt(2) to keep its variance."""
    total = skip + h
    return total / jnp.sqrt(2.0).astype(h.dtype) if rescale else total


class ResBlock(nn.Module):
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
        skip, h = h, nn.swish(group_norm(h.shape[-1])(h))
        if self.resample is not None:
            skip, h = self.resample(skip), self.resample(h)
        if self.resample is not None or skip.shape[-1] != self.channels:
            skip = nn.Dense(self.channels, kernel_init=self.kernel_init, name="shortcut")(skip)
        h = nn.Conv(self.channels, (3, 3), kernel_init=self.kernel_init)(h)
        if embedding is not None:
            embed = nn.Dense(self.channels, kernel_init=self.kernel_init, name="embed")
            h += embed(nn.swish(embedding))[:, None, None, :]
        h = nn.swish(group_norm(self.channels)(h))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        h = nn.Conv(self.channels, (3, 3), kernel_init=self.last_init)(h)
        return add_residual(skip, h, self.rescale)


class Attention(nn.Module):
    """Single-head self-attention over all positions, residual; attributes as those of `ResBlock`."""

    rescale: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    last_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, h: Maps) -> Maps:
        batch, height, width, channels = h.shape
        tokens = group_norm(channels)(h).reshape(batch, height * width, channels)
        attend = nn.MultiHeadDotProductAttention(
            num_heads=1, kernel_init=self.kernel_init, out_kernel_init=self.last_init
        )
        return add_residual(h, attend(tokens).reshape(h.shape), self.rescale)


def downsample(h: Maps) -> Resized:
    """Mean over 2 x 2 blocks."""
    return nn.avg_pool(h, (2, 2), strides=(2, 2))


def upsample(h: Maps) -> Resized:
    """Nearest-neighbour doubling."""
    return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
