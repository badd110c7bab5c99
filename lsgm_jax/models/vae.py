"""A variational autoencoder with a standard Gaussian prior: the first stage of LSGM, and its baseline."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Images, Key, Latents, PerSample, Scalar, sum_per_sample
from lsgm_jax.autoencoders.backbones import Backbone, Latent
from lsgm_jax.autoencoders.likelihoods import Likelihood, shown
from lsgm_jax.nn.network import Aux, Params
from lsgm_jax.nn.penalised import Penalised
from lsgm_jax.objectives.bound import Batch, Bound, bound_metrics
from lsgm_jax.objectives.kl import KLWeight, weigh


class Encoded(NamedTuple):
    """One pass through encoder, decoder and likelihood."""

    latent: Latent
    reconstruction: PerSample  # -log p(x | z), nats
    state: Params  # see `network.Aux`
    penalised: Penalised


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAE:
    """Autoencoder networks and likelihood; the parameters are the backbone's."""

    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    backbone: Backbone
    likelihood: Likelihood

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        return self.backbone.init(key)

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool) -> Encoded:
        """Draws the latents of `x` and scores x under the decoder."""
        passed = self.backbone.autoencode(params, shown(self.likelihood, x), key, train=train)
        reconstruction = -self.likelihood.log_prob(passed.features, x)
        return Encoded(passed.latent, reconstruction, passed.state, passed.penalised)

    def decode(self, params: Params, z_0: Latents, key: Key) -> Images:
        """Expected image, [batch, h, w, c] in [-1, 1]; latents beside z_0 are drawn from their prior."""
        return self.likelihood.mean(self.backbone.decode(params, z_0, key))

    def bound(self, params: Params, batch: Batch, key: Key) -> Bound:
        """Terms of the NELBO per image with the standard Gaussian prior, without dropout, one draw of the latents."""
        return _gaussian_bound(self.autoencode(params, batch.x, key, train=False))

    def loss(self, params: Params, batch: Batch, key: Key, kl: KLWeight = KLWeight()) -> tuple[Scalar, Aux]:
        """E[-log p(x | z)] + weighted KL(q || N(0, I)), mean over the batch, and metrics in nats."""
        encoded = self.autoencode(params, batch.x, key, train=True)
        loss = encoded.reconstruction + self.divergence(encoded, encoded.latent.gaussian_cross_entropy, kl)
        metrics = bound_metrics(_gaussian_bound(encoded))
        return jnp.mean(loss), Aux(metrics, encoded.state, {"vae": encoded.penalised})

    def divergence(self, encoded: Encoded, cross_entropy: Latents, kl: KLWeight) -> PerSample:
        """KL(q || p) as the loss weighs it, nats.

        Args:
            cross_entropy: of z_0 with its prior, per dimension; other latents have a Gaussian prior.
        """
        groups = self.backbone.groups_per_scale
        return weigh(encoded.latent.divergence(cross_entropy, groups[0]), kl, groups)

    def sample(self, params: Params, key: Key, count: int) -> Images:
        """Expected images of `count` latents drawn from the Gaussian prior."""
        k_prior, k_decoder = jax.random.split(key)
        return self.decode(params, jax.random.normal(k_prior, (count, *self.latent_shape)), k_decoder)


def _gaussian_bound(encoded: Encoded) -> Bound:
    latent = encoded.latent
    cross_entropy = sum_per_sample(latent.gaussian_cross_entropy) + latent.rest
    return Bound(encoded.reconstruction, latent.total_entropy, cross_entropy)
