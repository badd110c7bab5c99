"""The two kinds of autoencoder network behind a VAE: flat (encoder and decoder) and hierarchical (NVAE).

A backbone turns images into latents and features of the likelihood, and knows which latent the score prior describes.
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Images, Key, Latents, PerSample, sum_per_sample
from lsgm_jax.autoencoders.gaussian import LOG_2PI, Gaussian
from lsgm_jax.autoencoders.likelihoods import Features
from lsgm_jax.autoencoders.nvae import NVAE, GroupSample, join_groups, split_groups
from lsgm_jax.autoencoders.nvae_towers import Level
from lsgm_jax.nn.network import PLAINLY, Compute, Network, Params, StatefulNetwork, split_or_none
from lsgm_jax.nn.penalised import Penalised, by_layer, penalised
from lsgm_jax.objectives.kl import PerGroup, sum_per_group


class Latent(NamedTuple):
    """What an encoder drew, nats: expectations where they are known, and otherwise those of the draw."""

    z_0: Latents  # what the score prior describes
    entropy: Latents  # of q, per dimension of z_0
    gaussian_cross_entropy: Latents  # CE(q || N(0, I)), per dimension of z_0
    other_entropy: PerGroup  # of the groups beside z_0, which keep their Gaussian prior
    other_cross_entropy: PerGroup
    log_q: PerSample  # log q of the draw, all latents

    @property
    def total_entropy(self) -> PerSample:
        """Of all latents."""
        return sum_per_sample(self.entropy) + sum_per_sample(self.other_entropy)

    @property
    def rest(self) -> PerSample:
        """CE(q || N(0, I)) of the latents beside z_0."""
        return sum_per_sample(self.other_cross_entropy)

    def divergence(self, cross_entropy: Latents, groups: int) -> PerGroup:
        """KL(q || p) per group, the `groups` of z_0 first.

        Args:
            cross_entropy: of z_0 with its prior, per dimension.
        """
        of_z_0 = sum_per_group(cross_entropy - self.entropy, groups)
        return jnp.concatenate([of_z_0, self.other_cross_entropy - self.other_entropy], axis=1)


class Pass(NamedTuple):
    """One pass through encoder and decoder."""

    latent: Latent
    features: Features
    state: Params  # see `network.Aux`
    penalised: Penalised  # in training


@runtime_checkable
class Backbone(Protocol):
    """The networks of a VAE."""

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """Groups of latents on each scale, from that of z_0 up."""
        ...

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        ...

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool) -> Pass:
        """Draws the latents of `x` and decodes them; dropout and batch statistics are on in training."""
        ...

    def decode(self, params: Params, z_0: Latents, key: Key) -> Features:
        """Features for z_0; latents beside it are drawn from their Gaussian prior."""
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
        """One: z_0."""
        return (1,)

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        k_encoder, k_decoder = jax.random.split(key)
        return {
            "encoder": self.encoder.init(k_encoder, jnp.zeros((1, *self.image_shape))),
            "decoder": self.decoder.init(k_decoder, jnp.zeros((1, *self.latent_shape))),
        }

    def encode(self, params: Params, x: Images, dropout_key: Key | None = None) -> Gaussian:
        """q(z_0 | x)."""
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
        """Features for z_0; nothing else is drawn."""
        return self.decoder.apply(params["decoder"], z_0)


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
        """Of every group, those of z_0 first."""
        return self.net.latent_shapes(self.image_shape)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of z_0."""
        height, width, channels = self.latent_shapes()[0]
        return height, width, channels * self.net.groups_per_scale

    @property
    def groups_per_scale(self) -> tuple[int, ...]:
        """Groups of latents on each scale, from that of z_0 up."""
        return (self.net.groups_per_scale,) * self.net.scales

    def init(self, key: Key) -> Params:
        """Fresh parameters and running statistics."""
        noises = [jnp.zeros((1, *shape)) for shape in self.latent_shapes()]
        return self._network.init(key, jnp.zeros((1, *self.image_shape)), noises)

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool) -> Pass:
        """Draws all groups from the smallest scale up, and decodes them."""
        noises = _normal(key, [(len(x), *shape) for shape in self.latent_shapes()])
        output, state, kernels = self._network.apply(params, x, noises, train=train)
        # Its kernels are normalised and masked on the way: those that count are the ones that were applied.
        weights = Penalised(by_layer(kernels, "effective"), by_layer(params, "scale"))
        return Pass(self._latent(output.groups), output.features, state, weights)

    def decode(self, params: Params, z_0: Latents, key: Key) -> Features:
        """Features for z_0 and a draw of the larger scales."""
        top = self.net.groups_per_scale
        others = _normal(key, [(len(z_0), *shape) for shape in self.latent_shapes()[top:]])
        eps = [*split_groups(z_0, top), *others]
        return self._network.apply(params, eps, train=False, method="decode")[0]

    @property
    def _network(self) -> StatefulNetwork:
        return StatefulNetwork(self.net, self.compute)

    def _latent(self, groups: tuple[GroupSample, ...]) -> Latent:
        """Entropies of the draw: the flows leave nothing else."""
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


def _sums(groups: list[Level]) -> PerGroup:
    """Of every sample and group."""
    return jnp.stack([sum_per_sample(group) for group in groups], axis=1)


def _normal(key: Key, shapes: list[tuple[int, ...]]) -> list[Level]:
    """Standard Gaussian arrays of these shapes."""
    return [jax.random.normal(jax.random.fold_in(key, index), shape) for index, shape in enumerate(shapes)]
