"""The first stage of latent diffusion (Rombach et al. 2022): the encoder and decoder that its KL and VQ models share.

They are those of VQGAN (Esser et al. 2021), and both end in a 1x1 convolution at the latents. The published KL model
reads the encoder's features as `Gaussian.from_log_variance`; the VQ model takes them for latents, and the `Quantiser`
rounds them before they are decoded.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from lsgm_jax.arrays import Images, Latents, Scalar
from lsgm_jax.nn.layers import LDM_GROUPS, Block, Maps, Resized, attend, ldm_group_norm, upsample

EPSILON = 1e-6  # of every normalisation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """What encoder and decoder have in common: one level per resolution, from the images down.

    Attributes:
        channels: of the first level at a multiplier of one.
        channel_mult: multiplier of each level's width; there is one halving less than levels.
        blocks: residual blocks per level; the decoder has one more.
        attention: sides of the maps that have attention after every block, at images of side `resolution`. The middle
            of the network always has it; None for none at all, not even there.
        resolution: nominal side of the images, for the sides in `attention` only; images of any size are taken.
        dropout: rate within the blocks.

    Raises:
        ValueError: if a width cannot be normalised in 32 groups.
    """

    channels: int = 128
    channel_mult: tuple[int, ...]
    blocks: int = 2
    attention: tuple[int, ...] | None = ()
    resolution: int = 256
    dropout: float = 0.0

    def __post_init__(self):
        for width in self.widths:
            if width % LDM_GROUPS or width <= 0:
                raise ValueError(
                    f"channels={self.channels}, channel_mult={self.channel_mult}: a width of {width} is not divisible "
                    f"into {LDM_GROUPS} groups, use multiples of {LDM_GROUPS}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * factor for factor in self.channel_mult)

    def attends(self, level: int) -> bool:
        """Whether the blocks of a level are followed by attention."""
        return self.attention is not None and self.resolution // 2**level in self.attention


class Encoder(nn.Module):
    """Image -> features of the latents, [batch, h / 2^k, w / 2^k, features] for k halvings.

    Attributes:
        trunk_channels: before the last 1x1 convolution: twice z_channels for a KL model, z_channels for a VQ model.
        features: after it: mean and log-variance (twice the latents' channels), or the latents themselves.
    """

    levels: Levels
    trunk_channels: int
    features: int

    @nn.compact
    def __call__(self, x: Images, *, deterministic: bool) -> Resized:
        levels, widths = self.levels, self.levels.widths
        h = nn.Conv(levels.channels, (3, 3), dtype=x.dtype, name="stem")(x)
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
        h = nn.Conv(self.trunk_channels, (3, 3), dtype=h.dtype, name="trunk")(h)
        return nn.Dense(self.features, dtype=h.dtype, name="latent")(h)


class Decoder(nn.Module):
    """Latents -> images, [batch, h 2^k, w 2^k, out_channels], which nothing keeps within [-1, 1].

    Attributes:
        trunk_channels: after the first 1x1 convolution, z_channels.
    """

    levels: Levels
    trunk_channels: int
    out_channels: int = 3

    @nn.compact
    def __call__(self, z: Maps, *, deterministic: bool) -> Resized:
        levels, widths = self.levels, self.levels.widths
        h = nn.Dense(self.trunk_channels, dtype=z.dtype, name="latent")(z)
        h = nn.Conv(widths[-1], (3, 3), dtype=h.dtype, name="stem")(h)
        h = Middle(levels, name="middle")(h, deterministic=deterministic)
        for level in reversed(range(len(widths))):
            for index in range(levels.blocks + 1):
                h = ResidualBlock(widths[level], levels.dropout, name=f"block_{level}_{index}")(
                    h, deterministic=deterministic
                )
                if levels.attends(level):
                    h = PixelAttention(name=f"attention_{level}_{index}")(h)
            if level:
                h = nn.Conv(widths[level], (3, 3), dtype=h.dtype, name=f"up_{level}")(upsample(h))
        h = nn.swish(ldm_group_norm(h, "last_norm", EPSILON))
        return nn.Conv(self.out_channels, (3, 3), dtype=h.dtype, name="image")(h)


class Middle(nn.Module):
    """The smallest maps: block, attention, block."""

    levels: Levels

    @nn.compact
    def __call__(self, h: Maps, *, deterministic: bool) -> Maps:
        width, dropout = self.levels.widths[-1], self.levels.dropout
        h = ResidualBlock(width, dropout, name="block_0")(h, deterministic=deterministic)
        if self.levels.attention is not None:
            h = PixelAttention(name="attention")(h)
        return ResidualBlock(width, dropout, name="block_1")(h, deterministic=deterministic)


class ResidualBlock(Block):
    """Twice normalisation, swish and a 3x3 convolution, added to the input, unscaled."""

    channels: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, h: Maps, *, deterministic: bool) -> Resized:
        skip = h
        if h.shape[-1] != self.channels:
            skip = nn.Dense(self.channels, dtype=h.dtype, name="shortcut")(h)
        h = nn.swish(ldm_group_norm(h, "norm_0", EPSILON))
        h = nn.Conv(self.channels, (3, 3), dtype=h.dtype, name="conv_0")(h)
        h = nn.swish(ldm_group_norm(h, "norm_1", EPSILON))
        h = nn.Dropout(self.dropout, deterministic=deterministic)(h)
        return skip + nn.Conv(self.channels, (3, 3), dtype=h.dtype, name="conv_1")(h)


class PixelAttention(Block):
    """Single-head self-attention over all pixels, added to the input."""

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
    """3x3 convolution with stride 2 that pads below and to the right only; odd sizes are rounded down."""
    padding = ((0, 1), (0, 1))
    return nn.Conv(h.shape[-1], (3, 3), strides=2, padding=padding, dtype=h.dtype, name=name)(h)


def unit_scale(z: Latents) -> Scalar:
    """One over the standard deviation of all entries of a batch together (divisor n - 1).

    Latent diffusion multiplies latents by it before they are diffused, and divides by it before they are decoded. It is
    taken once, from a sample (not the mean) of the posterior of the first training batch.
    """
    return 1.0 / jnp.std(jax.lax.stop_gradient(z), ddof=1)
