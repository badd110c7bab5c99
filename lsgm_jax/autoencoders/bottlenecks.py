"""Bottlenecks between encoder and decoder of a first stage of latent diffusion: Gaussian, or a codebook.

A bottleneck maps features of the encoder to the latents that the prior models (`encode`), and these to the input of the
decoder (`decode`). In training, `sample` does both and returns the regularization loss.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsgm_jax.arrays import Key, Latents, PerSample, Scalar, sum_per_sample
from lsgm_jax.autoencoders.gaussian import Gaussian
from lsgm_jax.autoencoders.quantiser import Codebook, Quantiser, usage

Features = Float[Array, "batch ... features"]


class BottleneckSample(NamedTuple):
    """Latents in training, and their regularization loss.

    Attributes:
        z_0: input of the decoder.
        regularization_loss: KL in nats per image [batch] of a Gaussian; codebook loss, a mean over the batch.
        indices: indices of the codebook entries; None for a Gaussian.
    """

    z_0: Latents
    regularization_loss: PerSample | Scalar
    indices: Int[Array, "batch ..."] | None = None


@runtime_checkable
class Bottleneck(Protocol):
    """Maps features of the encoder to latents. Its parameters are those of `init`, besides those of the networks."""

    @property
    def latent_channels(self) -> int:
        """Number of channels of the latents."""
        ...

    @property
    def features(self) -> int:
        """Number of channels that the encoder outputs."""
        ...

    def init(self, key: Key) -> dict[str, Any]:
        """Initialises the parameters."""
        ...

    def sample(self, params: Any, features: Features, key: Key) -> BottleneckSample:
        """Samples the input of the decoder in training, and computes its regularization loss."""
        ...

    def encode(self, params: Any, features: Features, key: Key | None) -> Latents:
        """Computes the latents that the prior models.

        Args:
            params: parameters of the bottleneck.
            features: output of the encoder.
            key: for a sample of a Gaussian; None for its mode.
        """
        ...

    def decode(self, params: Any, z_0: Latents) -> Latents:
        """Maps latents of the prior to the input of the decoder."""
        ...

    def metrics(self, sampled: BottleneckSample) -> dict[str, Scalar]:
        """Computes scalar metrics of a batch for the training log."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianBottleneck:
    """Diagonal Gaussian q(z_0 | x), regularised by KL(q || N(0, I)) with a small weight; it has no parameters."""

    latent_channels: int

    @property
    def features(self) -> int:
        """Twice the latent channels, for mean and log variance."""
        return 2 * self.latent_channels

    def init(self, key: Key) -> dict[str, Any]:
        """Returns no parameters."""
        return {}

    def sample(self, params: Any, features: Features, key: Key) -> BottleneckSample:
        """Draws z_0 ~ q(z_0 | x) and computes KL(q || N(0, I)), nats per image."""
        posterior = Gaussian.from_log_variance(features)
        return BottleneckSample(posterior.sample(key), sum_per_sample(posterior.divergence_from_standard()))

    def encode(self, params: Any, features: Features, key: Key | None) -> Latents:
        """Draws z_0 ~ q(z_0 | x), or returns its mode without a key."""
        posterior = Gaussian.from_log_variance(features)
        return posterior.mean if key is None else posterior.sample(key)

    def decode(self, params: Any, z_0: Latents) -> Latents:
        """Returns the latents unchanged."""
        return z_0

    def metrics(self, sampled: BottleneckSample) -> dict[str, Scalar]:
        """Returns `kl`, nats per image."""
        return {"kl": jnp.mean(sampled.regularization_loss)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookBottleneck:
    """Vector quantisation as the first operation of the decoder: the prior models the latents before it."""

    quantiser: Quantiser

    @property
    def latent_channels(self) -> int:
        """Width of the codebook."""
        return self.quantiser.width

    @property
    def features(self) -> int:
        """The number of latent channels."""
        return self.quantiser.width

    def init(self, key: Key) -> dict[str, Codebook]:
        """Initialises {"codebook"}."""
        return {"codebook": self.quantiser.init(key)}

    def sample(self, params: Any, features: Features, key: Key) -> BottleneckSample:
        """Quantises the features and computes the codebook loss, a mean over the batch."""
        quantised = self.quantiser(params["codebook"], features)
        return BottleneckSample(quantised.values, quantised.loss, quantised.indices)

    def encode(self, params: Any, features: Features, key: Key | None) -> Latents:
        """Returns the features before quantisation; `key` is not used."""
        return features

    def decode(self, params: Any, z_0: Latents) -> Latents:
        """Quantises the latents to the nearest codebook entries."""
        return self.quantiser(params["codebook"], z_0).values

    def metrics(self, sampled: BottleneckSample) -> dict[str, Scalar]:
        """Returns `codebook_perplexity`, `codebook_used` (number of entries) and `codebook_loss`; see `Usage`."""
        assert sampled.indices is not None
        in_use = usage(sampled.indices, self.quantiser.entries)
        return {
            "codebook_perplexity": in_use.perplexity,
            "codebook_used": in_use.used.astype(float),
            "codebook_loss": sampled.regularization_loss,
        }
