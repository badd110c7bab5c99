"""A U-Net that predicts the noise in z_t, and the sinusoidal time embedding."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.arrays import Times
from lsgm_jax.nn.layers import (
    Attention,
    Context,
    Conv,
    Embedding,
    Maps,
    ResBlock,
    Resized,
    downsample,
    group_norm,
    see_context,
    upsample,
)

Prediction = Float[Array, "batch height width out_channels"]


def sinusoidal_embedding(t: Times, features: int, scale: float) -> Embedding:
    """Computes sines, then cosines, of `scale` t at geometrically spaced frequencies from 1 to 1e-4.

    Args:
        t: times in [0, 1].
        features: length of the embedding, an even number.
        scale: the fastest frequency, in radians per unit of t.
    """
    frequencies = jnp.exp(jnp.linspace(0.0, -jnp.log(10_000.0), features // 2))
    angles = scale * t[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def refuse_halving(shape: tuple[int, ...], levels: int) -> str | None:
    """Returns why maps cannot be halved `levels` - 1 times, or None if they can.

    Args:
        shape: height, width and channels of the maps.
        levels: number of levels, each of half the height and width of the one before.
    """
    if len(shape) != 3:
        return f"this network is for maps (height, width, channels), not for latents of shape {shape}"
    factor = 2 ** (levels - 1)
    if any(size % factor for size in shape[:2]):
        return (
            f"a latent of shape {shape}: {levels} levels need sides divisible by {factor}; give fewer levels"
        )
    return None


class UNet(nn.Module):
    """U-Net score network (z_t, t, context) -> eps_hat, [batch, h, w, c] -> [batch, h, w, out_channels].

    The coordinates of z_t are concatenated along its channels. The mean token of the context
    [batch, context_tokens, context_width], if given, shifts the time embedding.

    Attributes:
        out_channels: channels of the noise prediction.
        channels: channels of each level; each level after the first has half the height and width of the one before.
        blocks: residual blocks per level of the down path; the up path has one more.
        attention: heights of the feature maps with self-attention; the middle block always has it.
        dropout: dropout rate in the residual blocks.
        embedding_scale: fastest frequency of the time embedding, in radians per unit of t. LSGM uses 1000; the
            network, and with it the probability flow, can then vary on a scale of 1e-3 in t, for which adaptive solvers
            need many steps.
    """

    out_channels: int
    channels: tuple[int, ...] = (64, 64)
    blocks: int = 1
    attention: tuple[int, ...] = (4,)
    dropout: float = 0.1
    embedding_scale: float = 1000.0

    @nn.nowrap
    def refuse(self, shape: tuple[int, ...]) -> str | None:
        """Returns why the network cannot take latents of this shape (height, width, channels), or None if it can."""
        if not self.channels or min(self.channels) < 1:
            return f"channels={self.channels}: give one positive width per resolution"
        if self.blocks < 1:
            return f"blocks={self.blocks}: give at least one block per resolution"
        if not 0.0 <= self.dropout < 1.0:
            return f"dropout={self.dropout}: a probability below 1 is needed"
        return refuse_halving(shape, len(self.channels))

    @nn.compact
    def __call__(
        self, z_t: Maps, t: Times, context: Context | None = None, *, deterministic: bool
    ) -> Prediction:
        if (refusal := self.refuse(z_t.shape[1:])) is not None:
            raise ValueError(refusal)
        width = self.channels[0]
        embedding = nn.Dense(4 * width)(sinusoidal_embedding(t, width, self.embedding_scale))
        embedding = see_context(nn.Dense(4 * width)(nn.swish(embedding)), context)

        def stage(h: Maps, channels: int) -> Resized:
            h = ResBlock(channels, self.dropout)(h, embedding, deterministic=deterministic)
            return Attention()(h) if h.shape[1] in self.attention else h

        h = Conv(width, (3, 3), dtype=z_t.dtype, name="stem")(z_t)
        skips = [h]
        for level, channels in enumerate(self.channels):
            if level:
                h = downsample(h)
                skips.append(h)
            for _ in range(self.blocks):
                h = stage(h, channels)
                skips.append(h)

        h = ResBlock(h.shape[-1], self.dropout)(h, embedding, deterministic=deterministic)
        h = Attention()(h)
        h = ResBlock(h.shape[-1], self.dropout)(h, embedding, deterministic=deterministic)

        for level, channels in reversed(list(enumerate(self.channels))):
            for _ in range(self.blocks + 1):
                h = stage(jnp.concatenate([h, skips.pop()], axis=-1), channels)
            if level:
                h = upsample(h)

        h = nn.swish(group_norm(h))
        eps = Conv(self.out_channels, (3, 3), kernel_init=nn.initializers.zeros, dtype=h.dtype, name="eps")
        return eps(h)
