"""The denoiser of latent diffusion models (Rombach et al. 2022): a U-Net with optional cross-attention to a context.

Conditions that are images (a low-resolution image, a masked image with its mask) are concatenated to the channels of
the latent.
"""

import jax.numpy as jnp
from flax import linen as nn

from lsgm_jax.arrays import Times
from lsgm_jax.nn.layers import (
    LDM_GROUPS,
    Context,
    Maps,
    Resample,
    Resized,
    downsample,
    ldm_group_norm,
    upsample,
)
from lsgm_jax.nn.ldm_layers import (
    EPSILON,
    ZEROS,
    Double,
    Halve,
    ResidualBlock,
    SelfAttention,
    SpatialTransformer,
    conv,
    embed_time,
)
from lsgm_jax.nn.unet import Prediction, refuse_halving


class LDMUNet(nn.Module):
    """U-Net score network of LDM (z_t, t, context) -> eps_hat, [batch, h, w, c] -> [batch, h, w, out_channels].

    The context is None, or [batch, context_tokens, context_width] for cross-attention.

    Attributes:
        out_channels: channels of the noise prediction.
        channels: base number of channels, a multiple of 32.
        channel_mult: factor of `channels` for each level; each level after the first has half the height and width of
            the one before.
        blocks: residual blocks per level of the down path; the up path has one more.
        attention: downsampling factors, not heights, at which attention follows every residual block; the middle
            block always has it.
        heads: attention heads at every level, or None to give `head_width`.
        head_width: features per attention head; the number of heads is channels / head_width. None to give `heads`.
        context_width: width of the context's tokens; attention is then a spatial transformer. None: no context, and
            plain self-attention.
        transformer_depth: transformer blocks per spatial transformer.
        scale_shift: whether the time embedding scales and shifts the features after the second norm, instead of
            shifting them before it.
        resample_in_blocks: whether residual blocks resample, instead of convolutions.
        dropout: dropout rate in the residual blocks.
        steps: number of timesteps of the discrete process; timestep i is at t = (i + 1) / steps.
    """

    out_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    heads: int | None = None
    head_width: int | None = None
    context_width: int | None = None
    transformer_depth: int = 1
    scale_shift: bool = False
    resample_in_blocks: bool = False
    dropout: float = 0.0
    steps: int = 1000

    def __post_init__(self):
        if self.channels % LDM_GROUPS:
            raise ValueError(
                f"channels={self.channels}: use a multiple of {LDM_GROUPS}, the groups of all norms"
            )
        if bool(self.heads) == bool(self.head_width):
            raise ValueError(f"heads={self.heads}, head_width={self.head_width}: give one of the two")
        given = f"heads={self.heads}" if self.heads else f"head_width={self.head_width}"
        attending = {level for level in range(len(self.channel_mult)) if 2**level in self.attention}
        for level in sorted(attending | {len(self.channel_mult) - 1}):
            width = self.channels * self.channel_mult[level]
            if width % (self.heads or self.head_width or 1):
                raise ValueError(f"{given} does not divide the {width} channels of level {level}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, z_t: Maps, t: Times, context: Context | None = None, *, deterministic: bool
    ) -> Prediction:
        self._require_fit(z_t, context)
        embedding = embed_time(t, self.steps, self.channels, 4 * self.channels)

        # The numbering is that of the published code: down_i_j is layer j of the block that outputs skip i, up_i_j
        # layer j of the i-th block that consumes a skip.
        def residual(h: Maps, width: int, name: str, resample: Resample | None = None) -> Resized:
            block = ResidualBlock(width, self.dropout, self.scale_shift, resample, name=name)
            return block(h, embedding, deterministic=deterministic)

        def attend(h: Maps, name: str) -> Maps:
            heads = self.heads or h.shape[-1] // (self.head_width or 1)
            if context is None:
                return SelfAttention(heads, name=name)(h)
            return SpatialTransformer(heads, self.transformer_depth, name=name)(h, context)

        def stage(h: Maps, level: int, name: str) -> Resized:
            h = residual(h, widths[level], f"{name}_0")
            return attend(h, f"{name}_1") if 2**level in self.attention else h

        def resized(h: Maps, name: str, resample: Resample, layer: type[Halve] | type[Double]) -> Resized:
            if self.resample_in_blocks:
                return residual(h, h.shape[-1], name, resample)
            return layer(h.shape[-1], name=name)(h)

        widths = [self.channels * mult for mult in self.channel_mult]
        skips = [h := conv(self.channels, z_t, "down_0_0")(z_t)]
        for level in range(len(widths)):
            if level:
                skips.append(h := resized(h, f"down_{len(skips)}_0", downsample, Halve))
            for _ in range(self.blocks):
                skips.append(h := stage(h, level, f"down_{len(skips)}"))

        h = residual(h, widths[-1], "middle_0")
        h = attend(h, "middle_1")
        h = residual(h, widths[-1], "middle_2")

        taken = 0
        for level in reversed(range(len(widths))):
            for _ in range(self.blocks + 1):
                h = stage(jnp.concatenate([h, skips.pop()], axis=-1), level, f"up_{taken}")
                taken += 1
            if level:
                last = 2 if 2**level in self.attention else 1
                h = resized(h, f"up_{taken - 1}_{last}", upsample, Double)

        h = nn.swish(ldm_group_norm(h, "last_norm", EPSILON))
        return conv(self.out_channels, h, "eps", ZEROS)(h)

    @nn.nowrap
    def refuse(self, shape: tuple[int, ...]) -> str | None:
        """Returns why the network cannot take latents of this shape (height, width, channels), or None if it can."""
        return refuse_halving(shape, len(self.channel_mult))

    @nn.nowrap
    def _require_fit(self, z_t: Maps, context: Context | None) -> None:
        if (refusal := self.refuse(z_t.shape[1:])) is not None:
            raise ValueError(refusal)
        given = None if context is None else context.shape[-1]
        if given != self.context_width:
            raise ValueError(
                f"a context of width {given} for a network with context_width={self.context_width}"
            )
