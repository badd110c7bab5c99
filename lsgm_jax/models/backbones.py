"""The two kinds of autoencoder network behind a VAE: flat (encoder and decoder) and hierarchical (NVAE).

A backbone turns images into latents and features of the likelihood, and knows which latent the score prior describes.
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Images, Key, Latents, PerSample
from lsgm_jax.autoencoders.gaussian import Normal
from lsgm_jax.autoencoders.likelihoods import Features
from lsgm_jax.models.network import Network, Params, split_or_none


class Latent(NamedTuple):
    """What an encoder drew, nats: expectations where they are known, and otherwise those of the draw."""

    z_0: Latents  # what the score prior describes
    entropy: PerSample  # of q, all latents
    normal_cross_entropy: PerSample  # CE(q || N(0, I)), all latents
    rest: PerSample  # the part of it that is not z_0's: latents that keep their Normal prior


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
        latent = Latent(z_0, posterior.entropy(), cross_entropy, jnp.zeros_like(cross_entropy))
        return Pass(latent, features, carried={})

    def decode(self, params: Params, z_0: Latents, key: Key) -> Features:
        """Features for z_0; nothing else is drawn."""
        return self.decoder.apply(params["decoder"], z_0)
