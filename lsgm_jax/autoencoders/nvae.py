"""The NVAE of LSGM: a hierarchy of groups of latents with a standard Gaussian prior.

The posterior of a group depends on x and on the groups before it. Its latent `eps` is a sample of that posterior,
transformed by a flow if `flows` is positive. A score prior models the latents of the smallest scale, whose groups are
concatenated along the channels (`join_groups`); the latents of larger scales keep the standard Gaussian prior.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.arrays import Images, Latents
from lsgm_jax.autoencoders.gaussian import Gaussian
from lsgm_jax.autoencoders.likelihoods import Features
from lsgm_jax.autoencoders.nvae_cells import Cell
from lsgm_jax.autoencoders.nvae_towers import Constant, Encoder, LatentGroup, Level, Tail
from lsgm_jax.nn.layers import Maps, Resized
from lsgm_jax.nn.repeat import Call, Modules, repeat

GroupMaps = Float[Array, "batch height width _"]

# Expansion of the inverted bottlenecks in the decoder, before and after the last group; 0 for BN-swish cells.
ARCHITECTURES = {"res_bnswish": (0, 0), "res_mbconv": (6, 3)}


class GroupSample(NamedTuple):
    """Latent of one group, sampled from the encoder.

    Attributes:
        posterior: q before the flow, given x and the groups before.
        before_flow: sample of the posterior; its log density is log q of `eps`, as the flow preserves volume.
        eps: the latent, after the flow.
    """

    posterior: Gaussian
    before_flow: Latents
    eps: Latents


class NVAEOutput(NamedTuple):
    """Output of a forward pass.

    Attributes:
        features: features of the likelihood.
        groups: latents in decoder order, smallest scale first.
    """

    features: Features
    groups: tuple[GroupSample, ...]


class NVAE(nn.Module):
    """NVAE; the running statistics of its normalisations are the collection "batch_stats".

    In brackets, the flags of the published commands. Groups come in decoder order, smallest scale first.

    Attributes:
        scales: resolutions that have latents [num_latent_scales].
        groups_per_scale: groups of latents on each of them [num_groups_per_scale].
        latent_channels: channels of a group [num_latent_per_group].
        encoder_channels: base width of the encoder [num_channels_enc].
        decoder_channels: base width of the decoder [num_channels_dec].
        channel_mult: factor of the base width at every resolution, that of the image first [channel_mult].
        pre_blocks: halvings before the first latent scale [num_preprocess_blocks].
        pre_cells: cells per such halving [num_preprocess_cells].
        post_blocks: doublings after the last latent scale; as many as `pre_blocks` [num_postprocess_blocks].
        post_cells: cells per such doubling [num_postprocess_cells].
        encoder_cells: cells before each group [num_cell_per_cond_enc].
        decoder_cells: cells after each group [num_cell_per_cond_dec].
        arch: "res_bnswish", or "res_mbconv" for inverted bottlenecks in the decoder [arch_instance]. Names that go on
            with "_attn" mean the same, as no published network switches attention on.
        use_se: squeeze-and-excitation in every cell [use_se].
        input_skip: adds a pyramid of the pre-processed features to the encoder [progressive_input_vae].
        flows: pairs of flow cells per group [num_nf].
        log_sigma_bound: the logarithm of a posterior's standard deviation stays within plus or minus this
            [log_sig_q_scale].
        out_channels: numbers per pixel that the likelihood takes.
    """

    scales: int = 1
    groups_per_scale: int = 2
    latent_channels: int = 20
    encoder_channels: int = 64
    decoder_channels: int = 64
    channel_mult: tuple[int, ...] = (1, 2)
    pre_blocks: int = 1
    pre_cells: int = 2
    post_blocks: int = 1
    post_cells: int = 2
    encoder_cells: int = 1
    decoder_cells: int = 1
    arch: str = "res_mbconv"
    use_se: bool = True
    input_skip: bool = False
    flows: int = 0
    log_sigma_bound: float = 5.0
    out_channels: int = 1

    @property
    def group_count(self) -> int:
        """The number of groups on all scales."""
        return self.scales * self.groups_per_scale

    def setup(self):
        """Builds the parts; numbers that contradict each other raise ValueError."""
        tower, tail = self.expansions()
        halvings = self.pre_blocks + self.scales
        if len(self.channel_mult) != halvings or self.pre_blocks != self.post_blocks:
            raise ValueError(
                f"pre_blocks={self.pre_blocks} and scales={self.scales} need post_blocks={self.pre_blocks} and "
                f"{halvings} factors, got post_blocks={self.post_blocks}, channel_mult={self.channel_mult}"
            )
        encoder = tuple(self.encoder_channels * factor for factor in self.channel_mult)
        decoder = tuple(self.decoder_channels * factor for factor in self.channel_mult)
        self.encoder = Encoder(
            channels=encoder,
            blocks=self.pre_blocks,
            block_cells=self.pre_cells,
            scales=self.scales,
            groups=self.groups_per_scale,
            cells=self.encoder_cells,
            use_se=self.use_se,
            input_skip=self.input_skip,
        )
        self.constant = Constant(decoder[-1])
        self.group = [
            LatentGroup(
                latent_channels=self.latent_channels,
                encoder_channels=encoder[-1 - index // self.groups_per_scale],
                channels=decoder[-1 - index // self.groups_per_scale],
                first=index == 0,
                flows=self.flows,
                log_std_bound=self.log_sigma_bound,
                cells=self.decoder_cells,
                expansion=tower,
                use_se=self.use_se,
            )
            for index in range(self.group_count)
        ]
        self.up = [Cell(decoder[-2 - scale], "up", tower, self.use_se) for scale in range(self.scales - 1)]
        self.tail = Tail(
            channels=tuple(reversed(decoder[: self.post_blocks])),
            block_cells=self.post_cells,
            expansion=tail,
            use_se=self.use_se,
            out_channels=self.out_channels,
        )

    def __call__(self, x: Images, noises: Sequence[Level], *, train: bool) -> NVAEOutput:
        """Infers, draws and decodes.

        Args:
            x: images in [-1, 1].
            noises: a standard Gaussian array for each group, of the shapes `latent_shapes`.
            train: whether normalisations use the statistics of this batch.
        """
        self._count(noises)

        def draw(groups: Modules, state: Maps, inputs: tuple[Level, Level]) -> tuple[Maps, GroupSample]:
            (group,), (features, noise) = groups, inputs
            posterior = group.infer(features, state)
            before_flow = posterior.mean + jnp.exp(posterior.log_std) * noise
            eps = group.transport(before_flow)
            return group.absorb(state, eps, train=train), GroupSample(posterior, before_flow, eps)

        inputs = list(zip(self.encoder(x, train=train), noises, strict=True))
        state = self.constant(noises[0].astype(x.dtype))
        state, samples = self._through_groups(draw, state, inputs, train=train)
        return NVAEOutput(self.tail(state, train=train), tuple(samples))

    def decode(self, eps: Sequence[Level], *, train: bool = False) -> Features:
        """The features of the likelihood, from the latents of all groups."""
        self._count(eps)

        def absorb(groups: Modules, state: Maps, eps: Level) -> tuple[Maps, None]:
            return groups[0].absorb(state, eps, train=train), None

        state, _ = self._through_groups(absorb, self.constant(eps[0]), list(eps), train=train)
        return self.tail(state, train=train)

    def latent_shapes(self, image_shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
        """Height, width and channels of every group's latent for images of height, width and channels.

        Raises:
            ValueError: if the image cannot be halved as often as the smallest scale needs.
        """
        height, width, _ = image_shape
        shapes = []
        for scale in range(self.scales):
            factor = 2 ** (self.pre_blocks + self.scales - 1 - scale)
            if height % factor or width % factor:
                raise ValueError(f"NVAE needs images whose sides {factor} divides, got {height} x {width}")
            shape = (height // factor, width // factor, self.latent_channels)
            shapes += [shape] * self.groups_per_scale
        return tuple(shapes)

    def _through_groups(
        self, call: Call, state: Maps, inputs: Sequence[Any], *, train: bool
    ) -> tuple[Resized, list]:
        """Applies `call` to each group, the state and the group's input; doubles the state between scales."""
        outputs = []
        for scale in range(self.scales):
            part = slice(scale * self.groups_per_scale, (scale + 1) * self.groups_per_scale)
            if scale:
                state = self.up[scale - 1](state, train=train)
            state, more = repeat(call, [[group] for group in self.group[part]], state, inputs[part])
            outputs += more
        return state, outputs

    def _count(self, latents: Sequence[Level]) -> None:
        if len(latents) != self.group_count:
            raise ValueError(f"this NVAE has {self.group_count} groups of latents, got {len(latents)}")

    def expansions(self) -> tuple[int, int]:
        """Of the decoder cells before and after the last group."""
        cells = self.arch.split("_attn")[0]
        if cells not in ARCHITECTURES:
            raise ValueError(f"arch={self.arch!r} is not one of {', '.join(ARCHITECTURES)}")
        return ARCHITECTURES[cells]


def join_groups(groups: Sequence[GroupMaps]) -> GroupMaps:
    """Concatenates the groups of one scale along the channels, to the latent that a score prior models."""
    return jnp.concatenate(list(groups), axis=-1)


def split_groups(z: GroupMaps, groups: int) -> tuple[GroupMaps, ...]:
    """Splits the channels into `groups` equal groups; the inverse of `join_groups`."""
    return tuple(jnp.split(z, groups, axis=-1))
