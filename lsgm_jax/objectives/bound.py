"""The terms of a bound on the log-likelihood, and the latents in which it is evaluated."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lsgm_jax.arrays import Latents, PerSample, Scalar, sum_per_sample
from lsgm_jax.objectives.kl import PerGroup, sum_per_group


class Batch(NamedTuple):
    """Samples of the data, [batch, ...]: images in [-1, 1], NHWC, or vectors; and their conditions."""

    x: Latents
    condition: Any = None  # arrays [batch, ...], such as labels; see `conditioning.protocol`


class Latent(NamedTuple):
    """Latents drawn by an encoder and their terms of the bound, nats.

    Entropies are exact where they are known in closed form; elsewhere they are those of the draw.

    Attributes:
        z_0: the latent that the score prior models, [batch, ...].
        entropy: of q(z_0 | x), per dimension of z_0.
        gaussian_cross_entropy: CE(q(z_0 | x) || N(0, I)), per dimension of z_0.
        other_entropy: of the groups of latents besides z_0, which keep a standard Gaussian prior, [batch, groups].
        other_cross_entropy: CE(q || N(0, I)) of these groups, [batch, groups].
        log_q: log q of the draw of all latents.
    """

    z_0: Latents
    entropy: Latents
    gaussian_cross_entropy: Latents
    other_entropy: PerGroup
    other_cross_entropy: PerGroup
    log_q: PerSample

    @property
    def total_entropy(self) -> PerSample:
        """The entropy of all latents."""
        return sum_per_sample(self.entropy) + sum_per_sample(self.other_entropy)

    @property
    def rest(self) -> PerSample:
        """CE(q || N(0, I)) of the latents besides z_0."""
        return sum_per_sample(self.other_cross_entropy)

    def divergence(self, cross_entropy: Latents, groups: int) -> PerGroup:
        """Returns KL(q || p) per group, [batch, groups]; the `groups` groups of z_0 come first.

        Args:
            cross_entropy: of z_0 with its prior, per dimension.
        """
        of_z_0 = sum_per_group(cross_entropy - self.entropy, groups)
        return jnp.concatenate([of_z_0, self.other_cross_entropy - self.other_entropy], axis=1)


class Posterior(NamedTuple):
    """A draw of z_0 ~ q(z_0 | x) and the terms of the bound that come with it, per sample, nats.

    Attributes:
        z_0: [batch, ...].
        reconstruction: -log p(x | z).
        entropy: of q, all latents.
        rest: cross entropy of the latents besides z_0 with their prior.
        log_q: log q of the draw, all latents.
    """

    z_0: Latents
    reconstruction: PerSample
    entropy: PerSample
    rest: PerSample
    log_q: PerSample

    def bound(self, cross_entropy: PerSample) -> "Bound":
        """Returns the bound, given CE(q(z_0 | x) || p(z_0))."""
        return Bound(self.reconstruction, self.entropy, cross_entropy + self.rest)


class Encoded(NamedTuple):
    """One pass through encoder, decoder and likelihood.

    Attributes:
        reconstruction: -log p(x | z), nats.
        state: the new non-trainable state of the autoencoder (see `network.Aux`).
        penalised: the weights that penalties apply to (see `nn.penalised`).
    """

    latent: Latent
    reconstruction: PerSample
    state: Any
    penalised: Any

    @property
    def posterior(self) -> Posterior:
        """The draw of z_0 and its terms of the bound."""
        latent = self.latent
        return Posterior(latent.z_0, self.reconstruction, latent.total_entropy, latent.rest, latent.log_q)


class Bound(NamedTuple):
    """The terms of a bound on -log p(x), per sample, nats: nelbo = reconstruction - entropy + cross_entropy."""

    reconstruction: PerSample
    entropy: PerSample
    cross_entropy: PerSample

    @property
    def nelbo(self) -> PerSample:
        """The negative evidence lower bound."""
        return self.reconstruction - self.entropy + self.cross_entropy

    def terms(self) -> dict[str, PerSample]:
        """Returns the terms and their sum by name."""
        return {**self._asdict(), "nelbo": self.nelbo}


def bound_metrics(bound: Bound) -> dict[str, Scalar]:
    """Returns the batch means of the terms of a bound, nats."""
    return {name: jnp.mean(value) for name, value in bound.terms().items()}


class ODEBound(NamedTuple):
    """A bound on -log p(x) whose prior density is integrated along the probability-flow ODE.

    Attributes:
        nelbo: nats.
        log_weight: log p(x, z) - log q(z | x) of the draw, nats; the mean of its exponential is p(x).
        nfe: network evaluations on the batch.
        products: vector products with the network's Jacobian, on the batch.
        success: whether the solver reached t = 1, and the bound is finite.
    """

    nelbo: PerSample
    log_weight: PerSample
    nfe: Int[Array, ""]
    products: Int[Array, ""]
    success: Bool[Array, "batch"]
