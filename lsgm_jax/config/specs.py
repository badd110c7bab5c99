"""What sections say that are no object of their own: the fields, their defaults, and what they may be."""

import dataclasses

from lsgm_jax.autoencoders.ldm import Levels
from lsgm_jax.data.spec import SPLIT_NAMES
from lsgm_jax.errors import did_you_mean

FEWEST_SAMPLES = 4  # for a distance to the third neighbour


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvSpec:
    """The convolutional autoencoder; see `ConvEncoder`."""

    channels: tuple[int, ...] = (32, 64)
    blocks: int = 1
    latent_channels: int = 8
    dropout: float = 0.1

    def __post_init__(self):
        _check_network(self.channels, self.blocks, self.dropout)
        if self.latent_channels < 1:
            raise ValueError(f"latent_channels={self.latent_channels}: a latent needs at least one channel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstStageSpec(Levels):
    """A first stage of latent diffusion; see `Levels`.

    Attributes:
        latent_channels: of the latents.
    """

    latent_channels: int

    def __post_init__(self):
        super().__post_init__()
        if self.latent_channels < 1:
            raise ValueError(f"latent_channels={self.latent_channels}: a latent needs at least one channel")

    @property
    def factor(self) -> int:
        """By which latents are smaller than images."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLSpec(FirstStageSpec):
    """With latents held near a standard Gaussian; see `KLFirstStage`."""

    kl_weight: float = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQSpec(FirstStageSpec):
    """With latents rounded to a codebook; see `Quantiser` and `VQFirstStage`."""

    entries: int = 8192
    beta: float = 0.25
    legacy: bool = True
    codebook_weight: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceptualSpec:
    """LPIPS in a first stage's loss.

    Attributes:
        weights: a file of `torch.save` with its weights, or two with a comma between (see docs/howto/ldm.md); without
            any there is no such term.
        weight: of the distance.
    """

    weights: str = ""
    weight: float = 1.0

    def __post_init__(self):
        if self.weight < 0.0:
            raise ValueError(f"weight={self.weight}: give 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetSpec:
    """The U-Net; see `UNet`."""

    channels: tuple[int, ...] = (64, 64)
    blocks: int = 1
    attention: tuple[int, ...] = (4,)
    dropout: float = 0.1
    embedding_scale: float = 1000.0

    def __post_init__(self):
        _check_network(self.channels, self.blocks, self.dropout)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """The joint stage; see `Objective` and `LSGM`.

    `weighting` is a key of `WEIGHTINGS`, `spread` one of `SPREADS`. `mixed_score`, one of `FIXED_PARTS`, is added to
    the network's output before that is mixed with the Gaussian prediction.
    """

    weighting: str = "likelihood"
    spread: str = "stratified"
    control_variate: bool = True
    encoder_uses_ema: bool = False
    mixed_score: str = "none"
    mixing_logit_init: float = -3.0
    inactive_kl: float = 0.0

    def __post_init__(self):
        if self.inactive_kl < 0.0:
            raise ValueError(f"inactive_kl={self.inactive_kl}: give nats, or 0 to keep all channels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGMObjectiveSpec:
    """How an `SGM` is trained; names as in `ObjectiveSpec`.

    `mixed_score` is a key of `FIXED_PARTS`, `matching` one of `MATCHINGS`. `prediction`, of `PREDICTIONS`, is what the
    network's output means, and `norm`, of `NORMS`, how large its error is.
    """

    weighting: str = "unweighted"
    spread: str = "stratified"
    mixed_score: str = "none"
    matching: str = "hybrid"
    prediction: str = "eps"
    norm: str = "l2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LDMObjectiveSpec(SGMObjectiveSpec):
    """How the prior of an `LDM` is trained.

    Attributes:
        latent_scale: times the latents are what is diffused; 0 for one over the standard deviation of those of the
            first images.
    """

    latent_scale: float = 0.0

    def __post_init__(self):
        if self.latent_scale < 0.0:
            raise ValueError(f"latent_scale={self.latent_scale}: give a factor, or 0 to find one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """How sampling starts and ends; see `Sampler`."""

    t_min: float = 1e-5
    denoise: str = "none"
    temperature: float = 1.0
    guidance: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """What `lsgm evaluate` averages and compares.

    Attributes:
        draws: of (z_0, t, eps) per image.
        importance_draws: latents of the importance-weighted bound.
        batch_size: images at a time, over all devices.
        samples: of the model that distances compare with the data.
        reference: the split that they are compared with; published FIDs take the training split.
        classifier_steps: of training the classifier that judges where there are no weights of Inception; what suits
            digits leaves a judge of photographs poor.
    """

    draws: int = 16
    importance_draws: int = 10
    batch_size: int = 64
    samples: int = 50_000
    reference: str = "train"
    classifier_steps: int = 1000

    def __post_init__(self):
        for name in ("draws", "importance_draws", "batch_size", "classifier_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")
        if self.samples < FEWEST_SAMPLES:
            raise ValueError(f"samples={self.samples}: distances take {FEWEST_SAMPLES} at least")
        if self.reference not in SPLIT_NAMES:
            near = did_you_mean(self.reference, SPLIT_NAMES)
            raise ValueError(f"reference={self.reference!r} is none of {', '.join(SPLIT_NAMES)}{near}")


def _check_network(channels: tuple[int, ...], blocks: int, dropout: float) -> None:
    if not channels or min(channels) < 1:
        raise ValueError(f"channels={channels}: give one positive width per resolution")
    if blocks < 1:
        raise ValueError(f"blocks={blocks}: give at least one block per resolution")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout={dropout}: a probability below 1 is needed")
