"""The losses of latent diffusion's first stages: reconstruction, a bottleneck's price, and a discriminator of patches.

    autoencoder:    R + w_b B - lambda s mean D(x_hat),        discriminator:    s loss(D(x), D(x_hat))

R measures errors in absolute value and perceptually, B is the KL divergence to N(0, I) or the loss of the codebook,
and s switches the adversarial loss on once R is small. At the decoder's last convolution, lambda makes the gradient of
the adversarial loss as long as that of R, up to a weight (Esser et al. 2021, eq. 7).
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
    """Of a discriminator; nothing pulls at logits beyond plus or minus one."""
    return 0.5 * (jnp.mean(jax.nn.relu(1.0 - real)) + jnp.mean(jax.nn.relu(1.0 + fake)))


def softplus_loss(real: Logits, fake: Logits) -> Scalar:
    """Of a discriminator that estimates the log odds of an image's being real, nats; the original's "vanilla"."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


def generator_loss(fake: Logits) -> Scalar:
    """The adversarial term of the autoencoder, -mean D(x_hat), whichever loss the discriminator has."""
    return -jnp.mean(fake)


DISCRIMINATOR_LOSSES = {"hinge": hinge_loss, "softplus": softplus_loss}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GANLoss:
    """When and how much the discriminator counts.

    Attributes:
        start: the first step at which it does.
        weight: lambda over the adaptive weight.
        factor: of both players' terms.
        loss: the discriminator's, "hinge" or "softplus".

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
        """`factor` from the step `start` on, 0 before; steps count from 0."""
        return jnp.where(jnp.asarray(step) < self.start, 0.0, self.factor)

    def discriminator(self, real: Logits, fake: Logits, step: ArrayLike) -> Scalar:
        """The discriminator's loss."""
        return self.switch(step) * DISCRIMINATOR_LOSSES[self.loss](real, fake)

    def autoencoder(self, generator: Scalar, adaptive: Scalar, step: ArrayLike) -> Scalar:
        """The autoencoder's term, of `generator_loss` and `adaptive_weight`."""
        return self.weight * adaptive * self.switch(step) * generator


def adaptive_weight(reconstruction: Weights, generator: Weights) -> Scalar:
    """The ratio of two gradients' lengths, at most 1e4, both of the whole batch; no gradient flows through it.

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
    """`adaptive_weight` of two terms as functions of the kernel of the decoder's last layer, `last`."""
    return adaptive_weight(jax.grad(reconstruction)(last), jax.grad(generator)(last))


def error(x: Images, x_hat: Images, perceptual: PerSample, perceptual_weight: float = 1.0) -> Images:
    """|x - x_hat| + w_p p(x, x_hat) of every number; an image's perceptual distance counts at each of its numbers."""
    return jnp.abs(x - x_hat) + perceptual_weight * expand(perceptual, x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLFirstStage:
    """Weights of the KL model; its reconstruction is summed over an image's numbers.

    Attributes:
        kl_weight: of the divergence.
        log_variance: s of the errors' density; published models leave it at 0.
    """

    kl_weight: float = 1e-6
    log_variance: float = 0.0

    def reconstruction(self, errors: Images) -> Scalar:
        """Sum over an image, mean over the batch, of error / exp(s) + s."""
        per_number = errors / jnp.exp(self.log_variance) + self.log_variance
        return jnp.sum(per_number) / len(errors)

    def objective(self, reconstruction: Scalar, divergence: PerSample, adversarial: Scalar) -> Scalar:
        """The autoencoder's loss.

        Args:
            divergence: KL(q || N(0, I)) of every image, nats.
            adversarial: `GANLoss.autoencoder`.
        """
        return reconstruction + self.kl_weight * jnp.mean(divergence) + adversarial


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQFirstStage:
    """Weights of the VQ model; its reconstruction is a mean over all numbers.

    Attributes:
        codebook_weight: of the quantiser's loss.
    """

    codebook_weight: float = 1.0

    def reconstruction(self, errors: Images) -> Scalar:
        """Mean over all numbers."""
        return jnp.mean(errors)

    def objective(self, reconstruction: Scalar, codebook_loss: Scalar, adversarial: Scalar) -> Scalar:
        """The autoencoder's loss; `codebook_loss` is `Quantised.loss`, `adversarial` is `GANLoss.autoencoder`."""
        return reconstruction + self.codebook_weight * codebook_loss + adversarial
