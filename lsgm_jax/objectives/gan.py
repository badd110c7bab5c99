"""Losses of the first stages of latent diffusion: reconstruction, bottleneck regularisation, and patch discriminator.

    autoencoder:    R + w_b B - lambda s mean D(x_hat),        discriminator:    s loss(D(x), D(x_hat))

R is the sum of the absolute error and the perceptual distance, B is the KL divergence to N(0, I) or the codebook loss,
and s switches the adversarial loss on at a given step. lambda scales the gradient of the adversarial loss at the
decoder's last convolution to the norm of that of R, times a weight (Esser et al. 2021, eq. 7).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lsgm_jax.arrays import Images, PerSample, Scalar, expand, mean_over_devices

Logits = Float[Array, "batch rows columns 1"]
Weights = Float[Array, "..."]
GREATEST_WEIGHT = 1e4


def hinge_loss(real: Logits, fake: Logits) -> Scalar:
    """Returns the hinge loss of a discriminator, without gradient for correct logits beyond plus or minus one."""
    return 0.5 * (jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake)))


def softplus_loss(real: Logits, fake: Logits) -> Scalar:
    """Returns the cross entropy of a discriminator of log odds, nats; "vanilla" in the original code."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


def generator_loss(fake: Logits) -> Scalar:
    """Returns the adversarial term of the autoencoder, -mean D(x_hat), for either loss of the discriminator."""
    return -jnp.mean(fake)


DISCRIMINATOR_LOSSES = {"hinge": hinge_loss, "softplus": softplus_loss}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GANLoss:
    """The adversarial loss: its schedule, weights and type.

    Attributes:
        start: first step with an adversarial loss.
        weight: factor of the adaptive weight; lambda is their product.
        factor: of the terms of both generator and discriminator.
        loss: of the discriminator, "hinge" or "softplus".

    Raises:
        ValueError: for an unknown loss, or a negative number.
    """

    start: int = 50_001
    weight: float = 0.5
    factor: float = 1.0
    loss: str = "hinge"

    def __post_init__(self):
        if self.loss not in DISCRIMINATOR_LOSSES:
            raise ValueError(f"loss={self.loss!r} is none of {', '.join(DISCRIMINATOR_LOSSES)}")
        if min(self.start, self.weight, self.factor) < 0:
            raise ValueError(
                f"start={self.start}, weight={self.weight}, factor={self.factor}: give numbers of at least 0"
            )

    def switch(self, step: ArrayLike) -> Scalar:
        """Returns s: `factor` from step `start` on, 0 before; steps count from 0."""
        return jnp.where(jnp.asarray(step) < self.start, 0.0, self.factor)

    def discriminator(self, real: Logits, fake: Logits, step: ArrayLike) -> Scalar:
        """Returns the loss of the discriminator at a step, for its logits of data and reconstructions."""
        return self.switch(step) * DISCRIMINATOR_LOSSES[self.loss](real, fake)

    def autoencoder(self, generator: Scalar, adaptive: Scalar, step: ArrayLike) -> Scalar:
        """Returns the adversarial term of the autoencoder at a step.

        Args:
            generator: `generator_loss`.
            adaptive: `adaptive_weight`.
        """
        return self.weight * adaptive * self.switch(step) * generator


def adaptive_weight(reconstruction: Weights, generator: Weights) -> Scalar:
    """Returns the ratio of the norms of two gradients of the global batch, at most 1e4, without gradient.

    Args:
        reconstruction: gradient of the reconstruction term with respect to the kernel of the decoder's last layer.
        generator: gradient of `generator_loss` with respect to the same.
    """
    reconstruction, generator = mean_over_devices((reconstruction, generator))
    ratio = jnp.linalg.norm(reconstruction.ravel()) / (jnp.linalg.norm(generator.ravel()) + 1e-4)
    return jax.lax.stop_gradient(jnp.minimum(ratio, GREATEST_WEIGHT))


def balance(
    reconstruction: Callable[[Weights], Scalar], generator: Callable[[Weights], Scalar], last: Weights
) -> Scalar:
    """Returns the `adaptive_weight` of two terms, functions of the kernel `last` of the decoder's last layer."""
    return adaptive_weight(jax.grad(reconstruction)(last), jax.grad(generator)(last))


def error(x: Images, x_hat: Images, perceptual: PerSample, perceptual_weight: float = 1.0) -> Images:
    """Returns |x - x_hat| + w_p p(x, x_hat) for every pixel value; the perceptual distance is added to each of them."""
    return jnp.abs(x - x_hat) + perceptual_weight * expand(perceptual, x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLFirstStage:
    """The loss of the KL model, whose reconstruction is summed over the pixel values of an image.

    Attributes:
        kl_weight: of the divergence.
        log_variance: log-variance s of the reconstruction; 0 in published models.
    """

    kl_weight: float = 1e-6
    log_variance: float = 0.0

    def reconstruction(self, errors: Images) -> Scalar:
        """Returns error / exp(s) + s, summed over an image and averaged over the batch."""
        per_value = errors / jnp.exp(self.log_variance) + self.log_variance
        return jnp.sum(per_value) / len(errors)

    def objective(self, reconstruction: Scalar, divergence: PerSample, adversarial: Scalar) -> Scalar:
        """Returns the loss of the autoencoder.

        Args:
            divergence: KL(q || N(0, I)) of every image, nats.
            adversarial: `GANLoss.autoencoder`.
        """
        return reconstruction + self.kl_weight * jnp.mean(divergence) + adversarial


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQFirstStage:
    """The loss of the VQ model, whose reconstruction is averaged over all pixel values.

    Attributes:
        codebook_weight: of the codebook loss.
    """

    codebook_weight: float = 1.0

    def reconstruction(self, errors: Images) -> Scalar:
        """Returns the mean error over all pixel values."""
        return jnp.mean(errors)

    def objective(self, reconstruction: Scalar, codebook_loss: Scalar, adversarial: Scalar) -> Scalar:
        """Returns the loss of the autoencoder.

        Args:
            codebook_loss: the regularisation loss of the VQ bottleneck.
            adversarial: `GANLoss.autoencoder`.
        """
        return reconstruction + self.codebook_weight * codebook_loss + adversarial
