"""NCSN++ (Song et al. 2021), the score network of LSGM and CLD-SGM, which use it with different settings.

It is a U-Net of BigGAN-style residual blocks, which also resample, with self-attention at chosen resolutions.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.arrays import Times
from lsgm_jax.nn.layers import (
    Attention,
    Block,
    Context,
    Conv,
    Embedding,
    Maps,
    Resample,
    ResBlock,
    Resized,
    add_residual,
    downsample,
    group_norm,
    see_context,
    upsample,
)
from lsgm_jax.nn.ncsnpp_layers import (
    FourierFeatures,
    PyramidDown,
    fir_downsample,
    fir_upsample,
    scaled_init,
)
from lsgm_jax.nn.repeat import repeat
from lsgm_jax.nn.unet import Prediction, refuse_halving, sinusoidal_embedding

Skip = Float[Array, "batch height width skip_channels"]


class NCSNpp(nn.Module):
    """NCSN++ score network (z_t, t, context) -> eps_hat, [batch, h, w, c] -> [batch, h, w, out_channels].

    The coordinates of z_t are concatenated along its channels. The mean token of the context
    [batch, context_tokens, context_width], if given, shifts the time embedding.

    Attributes:
        out_channels: channels of the noise prediction.
        channels: base number of channels.
        channel_mult: factor of `channels` for each level; each level after the first has half the height and width of
            the one before.
        blocks: residual blocks per level of the down path; the up path has one more.
        attention: heights of the feature maps with self-attention, after every block of the down path and once per
            level of the up path; the middle block always has it.
        dropout: dropout rate in the residual blocks.
        fir: FIR kernel of the resampling, or None for nearest-neighbour interpolation and 2 x 2 means.
        embedding: "positional" for sinusoidal features of t, "fourier" for random Fourier features of log t.
        embedding_scale: fastest frequency of a positional embedding in radians per unit of t (LSGM: 1000, CLD: 1);
            standard deviation of the Fourier frequencies (CLD: 16).
        embedding_dim: length of the positional embedding, half the length of the Fourier embedding. Two dense layers
            map it to 4 `embedding_dim` features. None uses `channels`, as in CLD; LSGM uses 128.
        input_pyramid: "none", or "residual" to add the downsampled input at each new level of the down path.
        rescale: whether residual sums are divided by sqrt(2).
        init_scale: variance scale of the last kernel of each residual path and of the network; 0 uses 1e-10.
    """

    out_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    dropout: float
    fir: tuple[float, ...] | None = (1.0, 3.0, 3.0, 1.0)
    embedding: str = "positional"
    embedding_scale: float = 1000.0
    embedding_dim: int | None = None
    input_pyramid: str = "none"
    rescale: bool = True
    init_scale: float = 0.0

    def __post_init__(self):
        if self.embedding not in ("positional", "fourier"):
            raise ValueError(f"embedding={self.embedding!r}: use 'positional' or 'fourier'")
        if self.input_pyramid not in ("none", "residual"):
            raise ValueError(f"input_pyramid={self.input_pyramid!r}: use 'none' or 'residual'")
        if self.input_pyramid == "residual" and self.fir is None:
            raise ValueError("input_pyramid='residual' needs fir, the kernel that smooths the input")
        super().__post_init__()

    @nn.nowrap
    def refuse(self, shape: tuple[int, ...]) -> str | None:
        """Returns why the network cannot take latents of this shape (height, width, channels), or None if it can."""
        return refuse_halving(shape, len(self.channel_mult))

    @nn.compact
    def __call__(
        self, z_t: Maps, t: Times, context: Context | None = None, *, deterministic: bool
    ) -> Prediction:
        if (refusal := self.refuse(z_t.shape[1:])) is not None:
            raise ValueError(refusal)
        first, last = scaled_init(1.0), scaled_init(self.init_scale)
        embedding = see_context(self._embed(t), context)

        def res_block(channels: int, resample: Resample | None = None) -> ResBlock:
            return ResBlock(channels, self.dropout, resample, self.rescale, first, last)

        def attention_at(resolution: int) -> list[Attention]:
            return [Attention(self.rescale, scaled_init(0.1), last)] if resolution in self.attention else []

        def apply(layers: Sequence[Block], h: Maps, skip: Skip | None = None) -> tuple[Resized, Resized]:
            block, *attention = layers
            h = h if skip is None else jnp.concatenate([h, skip], axis=-1)
            h = block(h, embedding, deterministic=deterministic)
            for attend in attention:
                h = attend(h)
            return h, h

        widths = [self.channels * factor for factor in self.channel_mult]
        down, up = self._resampling()
        stem = Conv(self.channels, (3, 3), kernel_init=first, dtype=z_t.dtype, name="stem")
        h, pyramid = stem(z_t), z_t
        skips = [h]
        for level, width in enumerate(widths):
            if level:
                h, _ = apply([res_block(h.shape[-1], down)], h)
                if self.input_pyramid == "residual":
                    h = pyramid = self._add_input(pyramid, h)
                skips.append(h)
            layers = [[res_block(width), *attention_at(h.shape[1])] for _ in range(self.blocks)]
            h, hs = repeat(apply, layers, h, [None] * self.blocks)
            skips += hs

        middle = res_block(widths[-1]), Attention(self.rescale, scaled_init(0.1), last), res_block(widths[-1])
        h, _ = apply(middle[:2], h)
        h, _ = apply(middle[2:], h)

        for level, width in reversed(list(enumerate(widths))):
            layers = [[res_block(width)] for _ in range(self.blocks + 1)]
            h, _ = repeat(apply, layers, h, [skips.pop() for _ in layers])
            for attend in attention_at(h.shape[1]):
                h = attend(h)
            if level:
                h, _ = apply([res_block(width, up)], h)

        h = nn.swish(group_norm(h))
        return Conv(self.out_channels, (3, 3), kernel_init=last, dtype=h.dtype, name="eps")(h)

    def _embed(self, t: Times) -> Embedding:
        dim = self.embedding_dim or self.channels
        if self.embedding == "fourier":
            features = FourierFeatures(dim, self.embedding_scale)(t)
        else:
            features = sinusoidal_embedding(t, dim, self.embedding_scale)
        hidden = nn.Dense(4 * dim, kernel_init=scaled_init(1.0))(features)
        return nn.Dense(4 * dim, kernel_init=scaled_init(1.0))(nn.swish(hidden))

    @nn.nowrap
    def _resampling(self) -> tuple[Resample, Resample]:
        if self.fir is None:
            return downsample, upsample
        return (
            functools.partial(fir_downsample, kernel=self.fir),
            functools.partial(fir_upsample, kernel=self.fir),
        )

    def _add_input(self, pyramid: Maps, h: Resized) -> Resized:
        assert self.fir is not None
        step = PyramidDown(h.shape[-1], self.fir, scaled_init(1.0))
        return add_residual(step(pyramid), h, self.rescale)
