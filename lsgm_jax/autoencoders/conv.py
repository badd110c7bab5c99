"""A small convolutional encoder and decoder, mirror images of each other."""

from flax import linen as nn

from lsgm_jax.arrays import Images
from lsgm_jax.nn.layers import Conv, Maps, ResBlock, Resized, downsample, group_norm, upsample


class ConvEncoder(nn.Module):
    """x [batch, h, w, c] -> mean and log standard deviation of z_0, [batch, h / 2^k, w / 2^k, 2 latent_channels].

    `channels` lists the widths per resolution, so k = len(channels) - 1 halvings.
    """

    channels: tuple[int, ...]
    blocks: int
    latent_channels: int
    dropout: float

    @nn.compact
    def __call__(self, x: Images, *, deterministic: bool) -> Resized:
        h = Conv(self.channels[0], (3, 3), dtype=x.dtype, name="stem")(x)
        for level, channels in enumerate(self.channels):
            if level:
                h = downsample(h)
            for _ in range(self.blocks):
                h = ResBlock(channels, self.dropout)(h, deterministic=deterministic)
        h = nn.swish(group_norm(h))
        return Conv(2 * self.latent_channels, (3, 3), dtype=h.dtype, name="posterior")(h)


class ConvDecoder(nn.Module):
    """z_0 -> features of the likelihood per pixel, [batch, h, w, out_channels]."""

    channels: tuple[int, ...]
    blocks: int
    out_channels: int
    dropout: float

    @nn.compact
    def __call__(self, z_0: Maps, *, deterministic: bool) -> Resized:
        h = Conv(self.channels[-1], (3, 3), dtype=z_0.dtype, name="stem")(z_0)
        for level, channels in enumerate(reversed(self.channels)):
            if level:
                h = upsample(h)
            for _ in range(self.blocks):
                h = ResBlock(channels, self.dropout)(h, deterministic=deterministic)
        h = nn.swish(group_norm(h))
        return Conv(self.out_channels, (3, 3), dtype=h.dtype, name="features")(h)
