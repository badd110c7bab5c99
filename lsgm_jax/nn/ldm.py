"""The denoiser of latent diffusion models (Rombach et al. 2022): a U-Net that can look at a context.

What is concatenated to the latent (a low-resolution image, a masked one with its mask) is more input channels.
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
    """(z_t, t, context) -> eps_hat; the context [batch, tokens, width] is what cross-attention looks at, or None.

    Attributes:
        out_channels: channels of the noise prediction.
        channels: base width.
        channel_mult: width of each level over the base; each level after the first works at half the side of the
            one before.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: factors of down-sampling, not sides, at which attention follows every residual block; the middle
            of the net always has it.
        heads: of attention at every level, or None if `head_width` decides.
        head_width: features of each head, of which there are as many as the channels make; or None.
        context_width: of the context's tokens. With it, attention is a spatial transformer; None: plain self-attention.
        transformer_depth: self-attention, attention to the context and feed-forward in turns, this many times.
        scale_shift: whether the time scales and shifts normalised features; otherwise it shifts them before the norm.
        resample_in_blocks: whether residual blocks do the resampling; otherwise convolutions.
        steps: of the discrete process that the network was made for, whose timestep i is at t = (i + 1) / steps.
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

        # Names count as the published ones do: down_i_j is layer j of what gives skip i, up_i_j of what takes one.
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
        """Why latents of this shape do not fit, or None."""
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
