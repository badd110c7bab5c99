"""A variational autoencoder with a standard Gaussian prior: the first stage of LSGM, and its baseline."""

import dataclasses

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Images, Key, Latents, Params, Scalar, draw_array, sum_per_sample
from lsgm_jax.autoencoders.backbones import Backbone
from lsgm_jax.autoencoders.likelihoods import Likelihood, shown
from lsgm_jax.nn.network import Aux
from lsgm_jax.objectives.bound import Batch, Bound, Encoded, bound_metrics
from lsgm_jax.objectives.kl import KLWeight, weigh


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAE:
    """Autoencoder networks and likelihood; the parameters are those of the backbone."""

    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    backbone: Backbone
    likelihood: Likelihood

    def init(self, key: Key) -> Params:
        """Returns fresh parameters."""
        return self.backbone.init(key)

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool) -> Encoded:
        """Draws the latents of images x and evaluates x under the decoder.

        Args:
            x: [batch, h, w, c] in [-1, 1].
            train: whether dropout is on and normalisations use the statistics of the batch.
        """
        passed = self.backbone.autoencode(params, shown(self.likelihood, x), key, train=train)
        reconstruction = -self.likelihood.log_prob(passed.features, x)
        return Encoded(passed.latent, reconstruction, passed.state, passed.penalised)

    def decode(self, params: Params, z_0: Latents, key: Key) -> Images:
        """Returns expected images, [batch, h, w, c] in [-1, 1]; latents besides z_0 are drawn from their prior."""
        return self.likelihood.mean(self.backbone.decode(params, z_0, key))

    def bound(self, params: Params, batch: Batch, key: Key) -> Bound:
        """Computes the terms of the NELBO per image with the standard Gaussian prior, without dropout, nats."""
        return _gaussian_bound(self.autoencode(params, batch.x, key, train=False))

    def loss(self, params: Params, batch: Batch, key: Key, kl: KLWeight = KLWeight()) -> tuple[Scalar, Aux]:
        """Computes E[-log p(x | z)] + weighted KL(q || N(0, I)), mean over the batch, and metrics, nats."""
        encoded = self.autoencode(params, batch.x, key, train=True)
        groups = self.backbone.groups_per_scale
        divergence = encoded.latent.divergence(encoded.latent.gaussian_cross_entropy, groups[0])
        loss = encoded.reconstruction + weigh(divergence, kl, groups)
        metrics = bound_metrics(_gaussian_bound(encoded))
        return jnp.mean(loss), Aux(metrics, encoded.state, {"vae": encoded.penalised})

    def sample(self, params: Params, key: Key, count: int) -> Images:
        """Returns expected images of `count` latents drawn from the standard Gaussian prior."""
        k_prior, k_decoder = jax.random.split(key)
        return self.decode(
            params, draw_array(jax.random.normal, k_prior, (count, *self.latent_shape)), k_decoder
        )


def _gaussian_bound(encoded: Encoded) -> Bound:
    latent = encoded.latent
    cross_entropy = sum_per_sample(latent.gaussian_cross_entropy) + latent.rest
    return Bound(encoded.reconstruction, latent.total_entropy, cross_entropy)
