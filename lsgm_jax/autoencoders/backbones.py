"""The two kinds of autoencoder network of a VAE: flat (encoder and decoder) and hierarchical (NVAE).

A backbone maps images to latents, and latents to features of the likelihood. It knows which latent the prior models.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Images, Key, Latents, Params, draw_array, sum_per_sample
from lsgm_jax.autoencoders.conv import ConvDecoder, ConvEncoder
from lsgm_jax.autoencoders.gaussian import LOG_2PI, Gaussian
from lsgm_jax.autoencoders.likelihoods import Features
from lsgm_jax.autoencoders.nvae import NVAE, GroupSample, join_groups, split_groups
from lsgm_jax.autoencoders.nvae_towers import Level
from lsgm_jax.nn.network import PLAINLY, Compute, Network, StatefulNetwork, split_or_none
from lsgm_jax.nn.penalised import Penalised, by_layer, penalised
from lsgm_jax.objectives.bound import Latent
from lsgm_jax.objectives.kl import PerGroup


class Pass(NamedTuple):
    """One pass through encoder and decoder."""

    latent: Latent
    features: Features
    state: Params  # the new non-trainable state; see `network.Aux`
    penalised: Penalised  # the weights that penalties apply to, in training


@runtime_checkable
class Backbone(Protocol):
    """The networks of a VAE."""

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """The number of groups of latents on each scale, from that of z_0 up."""
        ...

    def init(self, key: Key) -> Params:
        """Returns fresh parameters."""
        ...

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool) -> Pass:
        """Draws the latents of `x` and decodes them; dropout and batch statistics are on in training."""
        ...

    def decode(self, params: Params, z_0: Latents, key: Key) -> Features:
        """Returns the features for z_0; other latents are drawn from their Gaussian prior."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flat:
    """An encoder to one diagonal Gaussian, and a decoder. Parameters: {"encoder", "decoder"}."""

    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    encoder: Network
    decoder: Network

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """One group: z_0."""
        return (1,)

    def init(self, key: Key) -> Params:
        """Returns fresh parameters."""
        k_encoder, k_decoder = jax.random.split(key)
        return {
            "encoder": self.encoder.init(k_encoder, jnp.zeros((1, *self.image_shape))),
            "decoder": self.decoder.init(k_decoder, jnp.zeros((1, *self.latent_shape))),
        }

    def encode(self, params: Params, x: Images, dropout_key: Key | None = None) -> Gaussian:
        """Returns q(z_0 | x)."""
        return Gaussian.from_features(self.encoder.apply(params["encoder"], x, dropout_key=dropout_key))

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool) -> Pass:
        """Draws z_0 ~ q(z_0 | x) and decodes it."""
        k_posterior, k_dropout = jax.random.split(key)
        k_encoder, k_decoder = split_or_none(k_dropout if train else None, 2)
        posterior = self.encode(params, x, dropout_key=k_encoder)
        z_0 = posterior.sample(k_posterior)
        features = self.decoder.apply(params["decoder"], z_0, dropout_key=k_decoder)
        latent = Latent(
            z_0,
            posterior.entropy(),
            posterior.cross_entropy_to_standard(),
            jnp.zeros((len(x), 0)),
            jnp.zeros((len(x), 0)),
            sum_per_sample(posterior.log_density(z_0)),
        )
        return Pass(latent, features, {}, penalised(params))

    def decode(self, params: Params, z_0: Latents, key: Key) -> Features:
        """Returns the features for z_0."""
        return self.decoder.apply(params["decoder"], z_0)


def conv_backbone(
    *,
    image_shape: tuple[int, int, int],
    out_channels: int,
    compute: Compute = PLAINLY,
    channels: tuple[int, ...] = (32, 64),
    blocks: int = 1,
    latent_channels: int = 8,
    dropout: float = 0.1,
) -> Flat:
    """Builds the small convolutional autoencoder; see `ConvEncoder` and `ConvDecoder`.

    Args:
        out_channels: features per pixel that the likelihood takes.
        channels: widths per resolution; every one after the first halves height and width.
        blocks: residual blocks per resolution.
        latent_channels: channels of z_0.

    Raises:
        ValueError: for images that cannot be halved so often, or a number out of range.
    """
    if not channels or min(channels) < 1:
        raise ValueError(f"channels={channels}: give one positive width per resolution")
    if blocks < 1:
        raise ValueError(f"blocks={blocks}: give at least one block per resolution")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout}: a probability below 1 is needed")
    if latent_channels < 1:
        raise ValueError(f"latent_channels={latent_channels}: a latent needs at least one channel")
    height, width, _ = image_shape
    shrink = 2 ** (len(channels) - 1)
    if height % shrink or width % shrink:
        raise ValueError(
            f"image_shape={image_shape} cannot be halved {len(channels) - 1} times: "
            "resize the images or give channels fewer entries"
        )
    return Flat(
        image_shape=image_shape,
        latent_shape=(height // shrink, width // shrink, latent_channels),
        encoder=Network(ConvEncoder(channels, blocks, latent_channels, dropout), compute),
        decoder=Network(ConvDecoder(channels, blocks, out_channels, dropout), compute),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hierarchical:
    """NVAE. Its smallest scale is z_0, the groups side by side; larger scales keep a Gaussian prior.

    Parameters: {"net", "state"}.
    """

    image_shape: tuple[int, int, int]
    net: NVAE
    compute: Compute = PLAINLY

    def __post_init__(self):
        self.latent_shapes()  # refuses images that cannot be halved

    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Returns the shape of every group, those of z_0 first."""
        return self.net.latent_shapes(self.image_shape)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """The shape of z_0."""
        height, width, channels = self.latent_shapes()[0]
        return height, width, channels * self.net.groups_per_scale

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """The number of groups of latents on each scale, from that of z_0 up."""
        return (self.net.groups_per_scale,) * self.net.scales

    def init(self, key: Key) -> Params:
        """Returns fresh parameters and running statistics."""
        noises = [jnp.zeros((1, *shape)) for shape in self.latent_shapes()]
        return self._network.init(key, jnp.zeros((1, *self.image_shape)), noises)

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool) -> Pass:
        """Draws all groups from the smallest scale up, and decodes them."""
        noises = _gaussian_noise(key, [(len(x), *shape) for shape in self.latent_shapes()])
        output, state, kernels = self._network.apply(params, x, noises, train=train)
        # NVAE normalises and masks its kernels: penalties are about the kernels that were applied.
        weights = Penalised(by_layer(kernels, "effective"), by_layer(params, "scale"))
        return Pass(self._latent(output.groups), output.features, state, weights)

    def decode(self, params: Params, z_0: Latents, key: Key) -> Features:
        """Returns the features for z_0 and a draw of the larger scales."""
        top = self.net.groups_per_scale
        others = _gaussian_noise(key, [(len(z_0), *shape) for shape in self.latent_shapes()[top:]])
        eps = [*split_groups(z_0, top), *others]
        return self._network.apply(params, eps, train=False, method="decode")[0]

    @property
    def _network(self) -> StatefulNetwork:
        return StatefulNetwork(self.net, self.compute)

    def _latent(self, groups: tuple[GroupSample, ...]) -> Latent:
        """Entropies of the draw: with flows there is no closed form."""
        top = self.net.groups_per_scale
        entropy = [-group.posterior.log_density(group.before_flow) for group in groups]
        normal = [0.5 * (group.eps**2 + LOG_2PI) for group in groups]
        return Latent(
            join_groups([group.eps for group in groups[:top]]),
            join_groups(entropy[:top]),
            join_groups(normal[:top]),
            _sums(entropy)[:, top:],
            _sums(normal)[:, top:],
            -jnp.sum(_sums(entropy), axis=1),
        )


def nvae_backbone(
    *, image_shape: tuple[int, int, int], out_channels: int, compute: Compute = PLAINLY, **fields: Any
) -> Hierarchical:
    """Builds an NVAE; `fields` are those of `NVAE`.

    Args:
        out_channels: features per pixel that the likelihood takes.

    Raises:
        ValueError: for images that cannot be halved as often as the NVAE does.
    """
    net = NVAE(out_channels=out_channels, **fields)
    return Hierarchical(image_shape=image_shape, net=net, compute=compute)


def _sums(groups: list[Level]) -> PerGroup:
    """Sums over every sample and group."""
    return jnp.stack([sum_per_sample(group) for group in groups], axis=1)


def _gaussian_noise(key: Key, shapes: list[tuple[int, ...]]) -> list[Level]:
    """Draws standard Gaussian arrays of these shapes."""
    return [
        draw_array(jax.random.normal, jax.random.fold_in(key, index), shape)
        for index, shape in enumerate(shapes)
    ]
