"""The first stage of latent diffusion (Rombach et al. 2022): the encoder and decoder shared by KL and VQ models.

They are those of VQGAN (Esser et al. 2021), with a 1x1 convolution before and after the latents. The published KL model
passes the features of the encoder to `Gaussian.from_log_variance`. In the VQ model they are the latents, which the
`Quantiser` quantises before decoding.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from lsgm_jax.arrays import Images, Latents, Scalar
from lsgm_jax.nn.layers import (
    LDM_GROUPS,
    Block,
    Conv,
    Maps,
    Resized,
    attend,
    dropout,
    ldm_group_norm,
    upsample,
)

EPSILON = 1e-6  # of every GroupNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """Settings shared by encoder and decoder; there is one level per resolution, that of the images first.

    Attributes:
        channels: base number of channels.
        channel_mult: factor of `channels` for each level; each level after the first has half the height and width of
            the one before.
        blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: heights of the feature maps with attention after every block, for images of height `resolution`. The
            middle block always has attention, except with None, which disables it everywhere.
        resolution: nominal height and width of the images, used only with `attention`; images may have any size.
        dropout: dropout rate in the residual blocks.

    Raises:
        ValueError: if the number of channels of a level is not a multiple of 32, the groups of GroupNorm; without
            levels or blocks; for a dropout rate outside [0, 1).
    """

    channels: int = 128
    channel_mult: tuple[int, ...]
    blocks: int = 2
    attention: tuple[int, ...] | None = ()
    resolution: int = 256
    dropout: float = 0.0

    def __post_init__(self):
        if not self.channel_mult:
            raise ValueError("channel_mult=(): give one factor per level")
        if self.blocks < 1 or self.resolution < 1:
            raise ValueError(f"blocks={self.blocks}, resolution={self.resolution}: give positive numbers")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout}: give a rate in [0, 1)")
        for width in self.widths:
            if width % LDM_GROUPS or width <= 0:
                raise ValueError(
                    f"channels={self.channels}, channel_mult={self.channel_mult}: a width of {width} is not divisible "
                    f"into {LDM_GROUPS} groups, use multiples of {LDM_GROUPS}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of channels of each level."""
        return tuple(self.channels * factor for factor in self.channel_mult)

    def attends(self, level: int) -> bool:
        """Returns whether attention follows the blocks of a level."""
        return self.attention is not None and self.resolution // 2**level in self.attention


class Encoder(nn.Module):
    """Images [batch, h, w, c] -> features of the latents [batch, h / 2^k, w / 2^k, features] for k + 1 levels.

    Attributes:
        levels: settings of the levels.
        trunk_channels: channels before the last 1x1 convolution: twice z_channels for a KL model, z_channels for VQ.
        features: channels after it: twice the latent channels (mean and log variance) for KL, the latent channels for
            VQ.
    """

    levels: Levels
    trunk_channels: int
    features: int

    @nn.compact
    def __call__(self, x: Images, *, deterministic: bool) -> Resized:
        levels, widths = self.levels, self.levels.widths
        h = Conv(levels.channels, (3, 3), dtype=x.dtype, name="stem")(x)
        for level, width in enumerate(widths):
            if level:
                h = halving_conv(f"down_{level - 1}", h)
            for index in range(levels.blocks):
                h = ResidualBlock(width, levels.dropout, name=f"block_{level}_{index}")(
                    h, deterministic=deterministic
                )
                if levels.attends(level):
                    h = PixelAttention(name=f"attention_{level}_{index}")(h)
        h = Middle(levels, name="middle")(h, deterministic=deterministic)
        h = nn.swish(ldm_group_norm(h, "last_norm", EPSILON))
        h = Conv(self.trunk_channels, (3, 3), dtype=h.dtype, name="trunk")(h)
        return nn.Dense(self.features, dtype=h.dtype, name="latent")(h)


class Decoder(nn.Module):
    """Latents [batch, h, w, c] -> images [batch, h 2^k, w 2^k, out_channels] for k + 1 levels.

    The output is not clipped to [-1, 1].

    Attributes:
        levels: settings of the levels.
        trunk_channels: channels after the first 1x1 convolution, z_channels.
        out_channels: channels of the images.
    """

    levels: Levels
    trunk_channels: int
    out_channels: int = 3

    @nn.compact
    def __call__(self, z: Maps, *, deterministic: bool) -> Resized:
        levels, widths = self.levels, self.levels.widths
        h = nn.Dense(self.trunk_channels, dtype=z.dtype, name="latent")(z)
        h = Conv(widths[-1], (3, 3), dtype=h.dtype, name="stem")(h)
        h = Middle(levels, name="middle")(h, deterministic=deterministic)
        for level in reversed(range(len(widths))):
            for index in range(levels.blocks + 1):
                h = ResidualBlock(widths[level], levels.dropout, name=f"block_{level}_{index}")(
                    h, deterministic=deterministic
                )
                if levels.attends(level):
                    h = PixelAttention(name=f"attention_{level}_{index}")(h)
            if level:
                h = Conv(widths[level], (3, 3), dtype=h.dtype, name=f"up_{level}")(upsample(h))
        h = nn.swish(ldm_group_norm(h, "last_norm", EPSILON))
        return Conv(self.out_channels, (3, 3), dtype=h.dtype, name="image")(h)


class Middle(nn.Module):
    """Residual block, attention and residual block at the lowest resolution; keeps the shape [batch, h, w, c]."""

    levels: Levels

    @nn.compact
    def __call__(self, h: Maps, *, deterministic: bool) -> Maps:
        width, dropout = self.levels.widths[-1], self.levels.dropout
        h = ResidualBlock(width, dropout, name="block_0")(h, deterministic=deterministic)
        if self.levels.attention is not None:
            h = PixelAttention(name="attention")(h)
        return ResidualBlock(width, dropout, name="block_1")(h, deterministic=deterministic)


class ResidualBlock(Block):
    """Residual block: twice GroupNorm, swish and a 3x3 convolution, [batch, h, w, c] -> [batch, h, w, channels].

    The residual sum is not rescaled.

    Attributes:
        channels: output channels.
        dropout: dropout rate before the second convolution.
    """

    channels: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, h: Maps, *, deterministic: bool) -> Resized:
        skip = h
        if h.shape[-1] != self.channels:
            skip = nn.Dense(self.channels, dtype=h.dtype, name="shortcut")(h)
        h = nn.swish(ldm_group_norm(h, "norm_0", EPSILON))
        h = Conv(self.channels, (3, 3), dtype=h.dtype, name="conv_0")(h)
        h = nn.swish(ldm_group_norm(h, "norm_1", EPSILON))
        h = dropout(h, self.dropout, deterministic=deterministic)
        return skip + Conv(self.channels, (3, 3), dtype=h.dtype, name="conv_1")(h)


class PixelAttention(Block):
    """Residual single-head self-attention over all pixels of feature maps, [batch, h, w, c] -> the same shape."""

    @nn.compact
    def __call__(self, h: Maps) -> Maps:
        batch, height, width, channels = h.shape
        tokens = ldm_group_norm(h, "norm", EPSILON).reshape(batch, height * width, channels)
        query, key, value = (
            nn.Dense(channels, dtype=h.dtype, name=name)(tokens)[:, :, None]
            for name in ("query", "key", "value")
        )
        mixed = attend(query, key, value).reshape(h.shape)
        return h + nn.Dense(channels, dtype=h.dtype, name="out")(mixed)


def halving_conv(name: str, h: Maps) -> Resized:
    """Applies a 3x3 convolution with stride 2 that pads only at the bottom and right; odd sizes are rounded down."""
    padding = ((0, 1), (0, 1))
    return Conv(h.shape[-1], (3, 3), strides=2, padding=padding, dtype=h.dtype, name=name)(h)


def unit_scale(z: Latents) -> Scalar:
    """Returns one over the standard deviation of all entries of a batch (divisor n - 1).

    Latent diffusion multiplies latents by this scale before diffusion and divides by it before decoding. It computes
    the scale once, from a posterior sample (not the mean) of the first training batch.

    Args:
        z: latents [batch, ...].
    """
    return 1.0 / jnp.std(jax.lax.stop_gradient(z), ddof=1)
