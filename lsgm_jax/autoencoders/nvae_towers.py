"""The modules of NVAE: the bottom-up encoder, one group of latents with its decoder cells, and the decoder's tail."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.arrays import at_least_float32
from lsgm_jax.autoencoders.gaussian import Gaussian
from lsgm_jax.autoencoders.nvae_cells import BatchNorm, Cell, Conv
from lsgm_jax.autoencoders.nvae_flow import FlowPair
from lsgm_jax.nn.layers import Maps, Resized
from lsgm_jax.nn.repeat import repeat

Level = Float[Array, "batch _ _ _"]  # maps of any resolution and width


class PyramidCell(nn.Module):
    """One level of the input pyramid of the encoder, [batch, h, w, c] -> [batch, h / 2, w / 2, channels].

    Attributes:
        channels: output channels.
    """

    channels: int

    @nn.compact
    def __call__(self, h: Maps, *, train: bool) -> Resized:
        h = nn.swish(BatchNorm(name="norm")(h, train=train))
        return Conv(self.channels, 3, stride=2, name="conv")(h)


class Encoder(nn.Module):
    """Bottom-up encoder: images [batch, h, w, c] -> one feature map per group of latents.

    The feature maps are in decoder order, smallest scale first.

    Attributes:
        channels: channels at each resolution, that of the image first.
        blocks: blocks before the first scale with latents; each halves the resolution.
        block_cells: cells per block, of which the last halves the resolution.
        scales: number of resolutions with latents.
        groups: groups of latents per scale.
        cells: cells before each group.
        use_se: whether cells use channel gates (`SqueezeExcite`).
        input_skip: whether to add a pyramid of the features after the blocks to each further scale.
    """

    channels: tuple[int, ...]
    blocks: int
    block_cells: int
    scales: int
    groups: int
    cells: int
    use_se: bool
    input_skip: bool

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> tuple[Level, ...]:
        h = Conv(self.channels[0], 3, name="stem")(x)
        for block in range(self.blocks):
            for cell in range(self.block_cells):
                down = cell == self.block_cells - 1
                h = self._cell(f"block_{block}_{cell}", block + down, down=down)(h, train=train)
        pyramid, features = h, []
        for scale in range(self.scales):
            level = self.blocks + scale
            if scale:
                h = self._cell(f"down_{scale}", level, down=True)(h, train=train)
                if self.input_skip:
                    cell = PyramidCell(self.channels[level], name=f"pyramid_{scale}")
                    pyramid = cell(pyramid, train=train)
                    h += pyramid
            names = [f"cell_{scale}_{i}_{j}" for i in range(self.groups) for j in range(self.cells)]
            cells = [[self._cell(name, level)] for name in names]
            h, hs = repeat(functools.partial(_apply, train=train), cells, h, [None] * len(cells))
            features += hs[self.cells - 1 :: self.cells]
        return tuple(reversed(features))

    @nn.nowrap
    def _cell(self, name: str, level: int, *, down: bool = False) -> Cell:
        return Cell(self.channels[level], "down" if down else "none", use_se=self.use_se, name=name)


def _apply(alone: Sequence[Cell], h: Maps, _: None, *, train: bool) -> tuple[Maps, Maps]:
    h = alone[0](h, train=train)
    return h, h


class LatentGroup(nn.Module):
    """One group of latents: its posterior, its flow, and the decoder cells after it.

    Attributes:
        latent_channels: channels of the group.
        encoder_channels: channels of the features of the encoder.
        channels: channels of the decoder state.
        first: whether this is the first group, for which the decoder state does not depend on x.
        flows: number of pairs of flow cells.
        log_std_bound: the log standard deviation of the posterior is clamped to plus or minus this.
        cells: decoder cells after the group.
        expansion: expansion of the decoder cells, 0 for BN-swish.
        use_se: whether decoder cells use channel gates (`SqueezeExcite`).
    """

    latent_channels: int
    encoder_channels: int
    channels: int
    first: bool
    flows: int
    log_std_bound: float
    cells: int
    expansion: int
    use_se: bool

    def setup(self):
        if not self.first:
            self.from_state = Conv(self.encoder_channels, 1)
        self.posterior = Conv(2 * self.latent_channels, 3)
        self.flow = [FlowPair() for _ in range(self.flows)]
        self.from_latent = Conv(self.latent_channels, 3)
        self.merge = Conv(self.channels, 1)
        self.cell = [
            Cell(self.channels, expansion=self.expansion, use_se=self.use_se) for _ in range(self.cells)
        ]

    def infer(self, features: Maps, state: Resized) -> Gaussian:
        """Computes q(z | x, groups before), before the flow, in float32, which log densities need."""
        if not self.first:
            features = features + self.from_state(state)
        posterior = at_least_float32(self.posterior(nn.elu(features)))
        return Gaussian.from_features(posterior, self.log_std_bound)

    def transport(self, z: Maps) -> Maps:
        """Applies the flow to a sample of the posterior, which gives the latent."""
        for pair in self.flow:
            z = pair(z)
        return z

    def absorb(self, state: Maps, eps: Resized, *, train: bool) -> Maps:
        """Merges the latent into the decoder state and applies the decoder cells."""
        latent = self.from_latent(eps.astype(state.dtype))
        state = self.merge(jnp.concatenate([state, latent], axis=-1))
        for cell in self.cell:
            state = cell(state, train=train)
        return state


class Tail(nn.Module):
    """Decoder state after the last group -> features of the likelihood [batch, h, w, out_channels].

    Attributes:
        channels: channels of each block, from the smallest resolution to that of the image.
        block_cells: cells per block, of which the first doubles the resolution.
        expansion: expansion of the cells, 0 for BN-swish.
        use_se: whether cells use channel gates (`SqueezeExcite`).
        out_channels: features per pixel of the likelihood.
    """

    channels: tuple[int, ...]
    block_cells: int
    expansion: int
    use_se: bool
    out_channels: int

    @nn.compact
    def __call__(self, h: Maps, *, train: bool) -> Resized:
        for block, channels in enumerate(self.channels):
            for index in range(self.block_cells):
                name, resampling = f"block_{block}_{index}", "none" if index else "up"
                h = Cell(channels, resampling, self.expansion, self.use_se, name=name)(h, train=train)
        return Conv(self.out_channels, 3, name="features")(nn.elu(h))


class Constant(nn.Module):
    """The learned initial decoder state, [batch, h, w, channels], the same for all images.

    Batch, height, width and dtype are those of the argument, the first latent.

    Attributes:
        channels: channels of the state.
    """

    channels: int

    @nn.compact
    def __call__(self, like: Maps) -> Resized:
        shape = (*like.shape[1:-1], self.channels)
        value = self.param("value", nn.initializers.uniform(1.0), shape, jnp.float32)
        return jnp.broadcast_to(value, (len(like), *shape)).astype(like.dtype)
