"""The two kinds of autoencoder network behind a VAE: flat (encoder and decoder) and hierarchical (NVAE).

A backbone turns images into latents and features of the likelihood, and knows which latent the score prior describes.
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Images, Key, Latents, PerSample, sum_per_sample
from lsgm_jax.autoencoders.gaussian import LOG_2PI, Normal
from lsgm_jax.autoencoders.likelihoods import Features
from lsgm_jax.autoencoders.nvae import NVAE, GroupSample, join_groups, split_groups
from lsgm_jax.models.network import Network, Params, StatefulNetwork, split_or_none


class Latent(NamedTuple):
    """What an encoder drew, nats: expectations where they are known, and otherwise those of the draw."""

    z_0: Latents  # what the score prior describes
    entropy: PerSample  # of q, all latents
    normal_cross_entropy: PerSample  # CE(q || N(0, I)), all latents
    rest: PerSample  # the part of it that is not z_0's: latents that keep their Normal prior
    log_q: PerSample  # log q of the draw, all latents


class Pass(NamedTuple):
    """One pass through encoder and decoder."""

    latent: Latent
    features: Features
    carried: Params  # see `network.Aux`


@runtime_checkable
class Backbone(Protocol):
    """The networks of a VAE."""

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        ...

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool) -> Pass:
        """Draws the latents of `x` and decodes them; dropout and batch statistics are on in training."""
        ...

    def decode(self, params: Params, z_0: Latents, key: Key) -> Features:
        """Features for z_0; latents beside it are drawn from their Normal prior."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flat:
    """An encoder to one diagonal Normal, and a decoder. Parameters: {"encoder", "decoder"}."""

    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    encoder: Network
    decoder: Network

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        k_encoder, k_decoder = jax.random.split(key)
        return {
            "encoder": self.encoder.init(k_encoder, jnp.zeros((1, *self.image_shape))),
            "decoder": self.decoder.init(k_decoder, jnp.zeros((1, *self.latent_shape))),
        }

    def encode(self, params: Params, x: Images, dropout_key: Key | None = None) -> Normal:
        """q(z_0 | x)."""
        return Normal.from_features(self.encoder.apply(params["encoder"], x, dropout_key=dropout_key))

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool) -> Pass:
        """Draws z_0 ~ q(z_0 | x) and decodes it."""
        k_posterior, k_dropout = jax.random.split(key)
        k_encoder, k_decoder = split_or_none(k_dropout if train else None, 2)
        posterior = self.encode(params, x, dropout_key=k_encoder)
        z_0 = posterior.sample(k_posterior)
        features = self.decoder.apply(params["decoder"], z_0, dropout_key=k_decoder)
        cross_entropy = posterior.cross_entropy_to_standard()
        log_q = sum_per_sample(posterior.log_density(z_0))
        latent = Latent(z_0, posterior.entropy(), cross_entropy, jnp.zeros_like(cross_entropy), log_q)
        return Pass(latent, features, carried={})

    def decode(self, params: Params, z_0: Latents, key: Key) -> Features:
        """Features for z_0; nothing else is drawn."""
        return self.decoder.apply(params["decoder"], z_0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hierarchical:
    """NVAE. Its smallest scale is z_0, the groups side by side; larger scales keep a Normal prior.

    Parameters: {"net", "carried"}.
    """

    image_shape: tuple[int, int, int]
    net: NVAE

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

    def init(self, key: Key) -> Params:
        """Fresh parameters and running statistics."""
        noises = [jnp.zeros((1, *shape)) for shape in self.latent_shapes()]
        return StatefulNetwork(self.net).init(key, jnp.zeros((1, *self.image_shape)), noises)

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool) -> Pass:
        """Draws all groups from the smallest scale up, and decodes them."""
        noises = _normal(key, [(len(x), *shape) for shape in self.latent_shapes()])
        output, carried = StatefulNetwork(self.net).apply(params, x, noises, train=train)
        return Pass(self._latent(output.groups), output.features, carried)

    def decode(self, params: Params, z_0: Latents, key: Key) -> Features:
        """Features for z_0 and a draw of the larger scales."""
        top = self.net.groups_per_scale
        others = _normal(key, [(len(z_0), *shape) for shape in self.latent_shapes()[top:]])
        eps = [*split_groups(z_0, top), *others]
        return StatefulNetwork(self.net).apply(params, eps, train=False, method="decode")[0]

    def _latent(self, groups: tuple[GroupSample, ...]) -> Latent:
        """Entropies of the draw: the flows leave nothing else."""
        top, zero = self.net.groups_per_scale, jnp.zeros(len(groups[0].eps))
        logs = [sum_per_sample(group.posterior.log_density(group.before_flow)) for group in groups]
        normal = [0.5 * sum_per_sample(group.eps**2 + LOG_2PI) for group in groups]
        z_0 = join_groups([group.eps for group in groups[:top]])
        log_q = sum(logs, start=zero)
        return Latent(z_0, -log_q, sum(normal, start=zero), sum(normal[top:], start=zero), log_q)


def _normal(key: Key, shapes: list[tuple[int, ...]]) -> list[Latents]:
    """Standard Normal arrays of these shapes."""
    return [jax.random.normal(jax.random.fold_in(key, index), shape) for index, shape in enumerate(shapes)]
