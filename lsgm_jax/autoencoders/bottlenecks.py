"""Between encoder and decoder of a first stage of latent diffusion: a narrow Gaussian, or a codebook.

Either says what the prior is to describe (`encode`), what the decoder is then given for it (`decode`), and does both at
once for training, with what that costs (`squeeze`).
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
    """Latents on their way to the decoder.

    Attributes:
        z_0: what is decoded.
        regularization_loss: nats of every image for a Gaussian, a mean over the batch for a codebook.
        indices: of the codebook's entries, if there is one.
    """

    z_0: Latents
    regularization_loss: PerSample | Scalar
    indices: Int[Array, "batch ..."] | None = None


@runtime_checkable
class Bottleneck(Protocol):
    """How features of the encoder become latents. Parameters: those of `init`, beside the networks'."""

    @property
    def latent_channels(self) -> int:
        """Of the latents."""
        ...

    @property
    def features(self) -> int:
        """Channels that the encoder gives."""
        ...

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh parameters."""
        ...

    def sample(self, params: Any, features: Features, key: Key) -> BottleneckSample:
        """What is decoded in training, and its price."""
        ...

    def encode(self, params: Any, features: Features, key: Key | None) -> Latents:
        """What the prior describes; of a Gaussian the mode, without a key."""
        ...

    def decode(self, params: Any, z_0: Latents) -> Latents:
        """What the decoder is given for it."""
        ...

    def metrics(self, sampled: BottleneckSample) -> dict[str, Scalar]:
        """What is worth watching of a batch."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianBottleneck:
    """q(z_0 | x), held near N(0, I) by a small weight; no parameters of its own."""

    latent_channels: int

    @property
    def features(self) -> int:
        """Mean and log variance."""
        return 2 * self.latent_channels

    def init(self, key: Key) -> dict[str, Any]:
        """None."""
        return {}

    def sample(self, params: Any, features: Features, key: Key) -> BottleneckSample:
        """A draw, and KL(q || N(0, I)) in nats."""
        posterior = Gaussian.from_log_variance(features)
        return BottleneckSample(posterior.sample(key), sum_per_sample(posterior.divergence_from_standard()))

    def encode(self, params: Any, features: Features, key: Key | None) -> Latents:
        """A draw, or the mode."""
        posterior = Gaussian.from_log_variance(features)
        return posterior.mean if key is None else posterior.sample(key)

    def decode(self, params: Any, z_0: Latents) -> Latents:
        """The latents themselves."""
        return z_0

    def metrics(self, sampled: BottleneckSample) -> dict[str, Scalar]:
        """`kl`, nats per image."""
        return {"kl": jnp.mean(sampled.regularization_loss)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookBottleneck:
    """Latents rounded to a codebook, but only as the decoder's first act: the prior describes them before."""

    quantiser: Quantiser

    @property
    def latent_channels(self) -> int:
        """The codebook's width."""
        return self.quantiser.width

    @property
    def features(self) -> int:
        """The latents themselves."""
        return self.quantiser.width

    def init(self, key: Key) -> dict[str, Codebook]:
        """{"codebook"}."""
        return {"codebook": self.quantiser.init(key)}

    def sample(self, params: Any, features: Features, key: Key) -> BottleneckSample:
        """The nearest entries, and the codebook's loss."""
        rounded = self.quantiser(params["codebook"], features)
        return BottleneckSample(rounded.values, rounded.loss, rounded.indices)

    def encode(self, params: Any, features: Features, key: Key | None) -> Latents:
        """The features, not rounded."""
        return features

    def decode(self, params: Any, z_0: Latents) -> Latents:
        """The nearest entries."""
        return self.quantiser(params["codebook"], z_0).values

    def metrics(self, sampled: BottleneckSample) -> dict[str, Scalar]:
        """`codebook_perplexity`, `codebook_used` (entries) and `codebook_loss`; see `Usage`."""
        assert sampled.indices is not None
        found = usage(sampled.indices, self.quantiser.entries)
        return {
            "codebook_perplexity": found.perplexity,
            "codebook_used": found.used.astype(float),
            "codebook_loss": sampled.regularization_loss,
        }
