"""A variational autoencoder with a standard Normal prior: the first stage of LSGM, and its baseline."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Images, Key, Latents, PerSample, Scalar
from lsgm_jax.autoencoders.gaussian import Normal
from lsgm_jax.autoencoders.likelihoods import Likelihood
from lsgm_jax.models.network import Network, Params, split_or_none


class Batch(NamedTuple):
    """What every model learns from."""

    x: Images


class Bound(NamedTuple):
    """The terms of a bound on -log p(x), per image, nats: nelbo = reconstruction - entropy + cross_entropy."""

    reconstruction: PerSample
    entropy: PerSample
    cross_entropy: PerSample

    @property
    def nelbo(self) -> PerSample:
        """Negative evidence lower bound."""
        return self.reconstruction - self.entropy + self.cross_entropy


class Encoded(NamedTuple):
    """One pass through encoder and decoder."""

    z_0: Latents
    posterior: Normal
    reconstruction: PerSample  # -log p(x | z_0), nats


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAE:
    """Encoder, decoder and likelihood. Parameters: {"encoder", "decoder"}."""

    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    encoder: Network
    decoder: Network
    likelihood: Likelihood

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

    def decode(self, params: Params, z_0: Latents) -> Images:
        """Expected image, [batch, h, w, c] in [-1, 1]."""
        return self.likelihood.mean(self.decoder.apply(params["decoder"], z_0))

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool) -> Encoded:
        """Draws z_0 ~ q(z_0 | x) and scores x under the decoder; dropout is on in training."""
        k_posterior, k_dropout = jax.random.split(key)
        k_encoder, k_decoder = split_or_none(k_dropout if train else None, 2)
        posterior = self.encode(params, x, dropout_key=k_encoder)
        z_0 = posterior.sample(k_posterior)
        features = self.decoder.apply(params["decoder"], z_0, dropout_key=k_decoder)
        return Encoded(z_0, posterior, -self.likelihood.log_prob(features, x))

    def bound(self, params: Params, batch: Batch, key: Key) -> Bound:
        """Terms of the NELBO per image with the standard Normal prior, without dropout, one draw of z_0."""
        encoded = self.autoencode(params, batch.x, key, train=False)
        return _normal_bound(encoded)

    def loss(
        self, params: Params, batch: Batch, key: Key, kl_coefficient: float | Scalar = 1.0
    ) -> tuple[Scalar, dict[str, Scalar]]:
        """E[-log p(x | z_0)] + kl_coefficient KL(q || N(0, I)), mean over the batch, and metrics in nats."""
        bound = _normal_bound(self.autoencode(params, batch.x, key, train=True))
        loss = bound.reconstruction + kl_coefficient * (bound.cross_entropy - bound.entropy)
        return jnp.mean(loss), bound_metrics(bound)

    def sample(self, params: Params, key: Key, count: int) -> Images:
        """Expected images of `count` latents drawn from the Normal prior."""
        return self.decode(params, jax.random.normal(key, (count, *self.latent_shape)))


def bound_metrics(bound: Bound) -> dict[str, Scalar]:
    """Batch means of the terms of a bound, nats."""
    return {name: jnp.mean(value) for name, value in {**bound._asdict(), "nelbo": bound.nelbo}.items()}


def _normal_bound(encoded: Encoded) -> Bound:
    posterior = encoded.posterior
    return Bound(encoded.reconstruction, posterior.entropy(), posterior.cross_entropy_to_standard())
