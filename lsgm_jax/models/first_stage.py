"""The first stage of latent diffusion: an autoencoder that is trained against a discriminator.

It has no likelihood and no prior: it learns to make images that look right. The second stage models its latents.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lsgm_jax.arrays import Images, Key, Latents, Params, PerSample, Scalar
from lsgm_jax.autoencoders.bottlenecks import Bottleneck, BottleneckSample
from lsgm_jax.nn.network import Aux, Network, StatefulNetwork
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.gan import (
    GANLoss,
    KLFirstStage,
    Logits,
    VQFirstStage,
    balance,
    error,
    generator_loss,
)

Distance = Callable[[Images, Images], PerSample]
LAST = "image"  # the decoder's last layer, at which the gradients of both losses are balanced


class Coded(NamedTuple):
    """Images through the bottleneck and back.

    Attributes:
        sampled: the latents and their regularisation loss.
        x_hat: the reconstruction.
    """

    sampled: BottleneckSample
    x_hat: Images


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstStage:
    """Encoder, bottleneck and decoder. Parameters: {"encoder", "decoder"}, and those of the bottleneck.

    The decoder's output may leave [-1, 1]; it is clipped where images are shown or stored. There is no likelihood and
    no prior, so `bound` and `sample` are None.
    """

    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    encoder: Network
    decoder: Network
    bottleneck: Bottleneck
    bound = sample = None

    def init(self, key: Key) -> Params:
        """Returns fresh parameters."""
        k_encoder, k_decoder, k_bottleneck = jax.random.split(key, 3)
        return {
            "encoder": self.encoder.init(k_encoder, jnp.zeros((1, *self.image_shape))),
            "decoder": self.decoder.init(k_decoder, jnp.zeros((1, *self.latent_shape))),
            **self.bottleneck.init(k_bottleneck),
        }

    def encode(self, params: Params, x: Images, key: Key | None, *, train: bool = False) -> Latents:
        """Returns latents of images: a draw where the bottleneck is random, its mode without a key.

        Args:
            train: whether in a training step, of a prior: the encoder then computes as `compute` of the config says.
        """
        encoder = self.encoder.apply_frozen if train else self.encoder.apply
        return self.bottleneck.encode(params, encoder(params["encoder"], x), key)

    def decode(self, params: Params, z_0: Latents) -> Images:
        """Returns the images of latents, of the data or of the prior."""
        return self.decoder.apply(params["decoder"], self.bottleneck.decode(params, z_0))

    def autoencode(self, params: Params, x: Images, key: Key, *, train: bool = False) -> Coded:
        """Passes images through the bottleneck and back; dropout is on in training."""
        k_bottleneck, k_encoder, k_decoder = jax.random.split(key, 3) if train else (key, None, None)
        features = self.encoder.apply(params["encoder"], x, dropout_key=k_encoder)
        sampled = self.bottleneck.sample(params, features, k_bottleneck)
        return Coded(sampled, self.decoder.apply(params["decoder"], sampled.z_0, dropout_key=k_decoder))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """The loss of a first stage against a discriminator. Parameters: {"first_stage", "discriminator"}.

    Generator and discriminator move at once, each from the last position of the other; the original alternates.

    Attributes:
        criterion: weights reconstruction error and regularisation loss.
        perceptual: a distance of images that is added to the error of their values; None for none.
        perceptual_weight: its weight.
    """

    first_stage: FirstStage
    discriminator: StatefulNetwork
    criterion: KLFirstStage | VQFirstStage
    gan_loss: GANLoss
    perceptual: Distance | None = None
    perceptual_weight: float = 1.0

    def init(self, key: Key) -> Params:
        """Returns fresh parameters of generator and discriminator."""
        k_first_stage, k_discriminator = jax.random.split(key)
        example = jnp.zeros((1, *self.first_stage.image_shape))
        return {
            "first_stage": self.first_stage.init(k_first_stage),
            "discriminator": self.discriminator.init(k_discriminator, example),
        }

    def loss(self, params: Params, batch: Batch, key: Key, step: ArrayLike) -> tuple[Scalar, Aux]:
        """Computes the sum of generator and discriminator loss; each has the gradient of its own parameters alone.

        Args:
            step: from 0; the adversarial loss counts from `gan_loss.start` on.
        """
        sampled, x_hat = self.first_stage.autoencode(params["first_stage"], batch.x, key, train=True)
        frozen = jax.lax.stop_gradient(params)
        reconstruction = self.criterion.reconstruction(self.error(batch.x, x_hat))
        generator = generator_loss(self._judge(frozen["discriminator"], x_hat)[0])
        adaptive = self._balance(frozen, batch.x, key)
        fooled = self.gan_loss.autoencoder(generator, adaptive, step)
        autoencoder_loss = self.criterion.objective(reconstruction, sampled.regularization_loss, fooled)

        real, state = self._judge(params["discriminator"], batch.x)
        fake, state = self._judge(params["discriminator"] | state, jax.lax.stop_gradient(x_hat))
        discriminator_loss = self.gan_loss.discriminator(real, fake, step)

        metrics = {
            "reconstruction": jnp.mean(self.error(batch.x, x_hat)),
            "psnr": jnp.mean(psnr(batch.x, x_hat)),
            "logit_real": jnp.mean(real),
            "logit_fake": jnp.mean(fake),
            "adaptive_weight": adaptive,
            "discriminator_loss": discriminator_loss,
            **self.first_stage.bottleneck.metrics(sampled),
        }
        return autoencoder_loss + discriminator_loss, Aux(metrics, {"discriminator": state}, {})

    def error(self, x: Images, x_hat: Images) -> Images:
        """Returns the error of every value of an image, the perceptual distance included."""
        if self.perceptual is None:
            return jnp.abs(x - x_hat)
        return error(x, x_hat, self.perceptual(x, x_hat), self.perceptual_weight)

    def _judge(self, params: Params, x: Images) -> tuple[Logits, Params]:
        """Logits of patches, normalised by the statistics of the batch, and the new running statistics."""
        logits, state, _ = self.discriminator.apply(params, x, train=True)
        return logits, state

    def _balance(self, params: Params, x: Images, key: Key) -> Scalar:
        """The adaptive weight; `params` take no gradient. XLA finds the forward pass to be that of the loss."""
        stage = params["first_stage"]
        decoder = stage["decoder"]

        def decode(last: Params) -> Images:
            changed = decoder | {LAST: decoder[LAST] | {"kernel": last}}
            return self.first_stage.autoencode(stage | {"decoder": changed}, x, key, train=True).x_hat

        return balance(
            lambda last: self.criterion.reconstruction(self.error(x, decode(last))),
            lambda last: generator_loss(self._judge(params["discriminator"], decode(last))[0]),
            decoder[LAST]["kernel"],
        )


def psnr(x: Images, x_hat: Images) -> PerSample:
    """Computes the peak signal-to-noise ratio of images in [-1, 1], dB; reconstructions are clipped."""
    squared = (x - jnp.clip(x_hat, -1.0, 1.0)) ** 2
    return 10.0 * jnp.log10(4.0 / jnp.mean(squared.reshape(len(x), -1), axis=1))
