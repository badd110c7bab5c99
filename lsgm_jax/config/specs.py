"""Sections of a config that are no object of the library: their fields, defaults and limits."""

import dataclasses

from lsgm_jax.autoencoders.bottlenecks import Bottleneck, CodebookBottleneck, GaussianBottleneck
from lsgm_jax.autoencoders.ldm import Decoder, Encoder, Levels
from lsgm_jax.autoencoders.quantiser import Quantiser
from lsgm_jax.data.spec import SPLIT_NAMES
from lsgm_jax.errors import did_you_mean
from lsgm_jax.models.first_stage import FirstStage
from lsgm_jax.nn.network import Compute, Network
from lsgm_jax.objectives.gan import KLFirstStage, VQFirstStage

FEWEST_SAMPLES = 4  # for a distance to the third neighbour


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstStageSpec(Levels):
    """A first stage of latent diffusion; see `Levels`.

    Attributes:
        latent_channels: channels of the latents.
    """

    latent_channels: int

    def __post_init__(self):
        super().__post_init__()
        if self.latent_channels < 1:
            raise ValueError(f"latent_channels={self.latent_channels}: a latent needs at least one channel")

    def build(
        self, image_shape: tuple[int, int, int], bottleneck: Bottleneck, compute: Compute
    ) -> FirstStage:
        """Builds the first stage.

        Raises:
            ValueError: for images that cannot be halved so often.
        """
        height, width, channels = image_shape
        factor = 2 ** (len(self.channel_mult) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"image_shape={image_shape} cannot be halved {len(self.channel_mult) - 1} times: "
                "resize the images or give channel_mult fewer entries"
            )
        encoder = Encoder(self, trunk_channels=bottleneck.features, features=bottleneck.features)
        decoder = Decoder(self, trunk_channels=self.latent_channels, out_channels=channels)
        return FirstStage(
            image_shape=image_shape,
            latent_shape=(height // factor, width // factor, self.latent_channels),
            encoder=Network(encoder, compute),
            decoder=Network(decoder, compute),
            bottleneck=bottleneck,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLSpec(FirstStageSpec):
    """A first stage whose latents are kept near a standard Gaussian; see `KLFirstStage`."""

    kl_weight: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        if self.kl_weight < 0.0:
            raise ValueError(f"kl_weight={self.kl_weight}: give 0 or more")

    def first_stage(self, image_shape: tuple[int, int, int], compute: Compute) -> FirstStage:
        """Builds the first stage."""
        return self.build(image_shape, GaussianBottleneck(latent_channels=self.latent_channels), compute)

    @property
    def criterion(self) -> KLFirstStage:
        """The weights of its loss."""
        return KLFirstStage(kl_weight=self.kl_weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQSpec(FirstStageSpec):
    """A first stage whose latents are rounded to a codebook; see `Quantiser` and `VQFirstStage`."""

    entries: int = 8192
    beta: float = 0.25
    legacy: bool = True
    codebook_weight: float = 1.0

    def first_stage(self, image_shape: tuple[int, int, int], compute: Compute) -> FirstStage:
        """Builds the first stage."""
        quantiser = Quantiser(
            entries=self.entries, width=self.latent_channels, beta=self.beta, legacy=self.legacy
        )
        return self.build(image_shape, CodebookBottleneck(quantiser=quantiser), compute)

    @property
    def criterion(self) -> VQFirstStage:
        """The weights of its loss."""
        return VQFirstStage(codebook_weight=self.codebook_weight)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceptualSpec:
    """LPIPS in the loss of a first stage.

    Attributes:
        weights: a file of `torch.save` with its weights, or two with a comma between (see docs/howto/ldm.md); "" for
            no such term.
        weight: factor of the distance.
    """

    weights: str = ""
    weight: float = 1.0

    def __post_init__(self):
        if self.weight < 0.0:
            raise ValueError(f"weight={self.weight}: give 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """The objective of an LSGM's second stage; see `Objective` and `ScoreModel`.

    `weighting` is a name of `WEIGHTINGS`, `spread` one of `SPREADS`, `prediction` one of `PREDICTIONS`. `mixed_score`,
    one of `FIXED_PARTS`, is added to the network's output before that is mixed with the Gaussian prediction.
    """

    weighting: str = "likelihood"
    spread: str = "stratified"
    control_variate: bool = True
    encoder_uses_ema: bool = False
    mixed_score: str = "none"
    prediction: str = "eps"
    mixing_logit_init: float = -3.0
    inactive_kl: float = 0.0

    def __post_init__(self):
        if self.inactive_kl < 0.0:
            raise ValueError(f"inactive_kl={self.inactive_kl}: give nats, or 0 to keep all channels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGMObjectiveSpec:
    """The objective of an SGM; see `Objective` and `ScoreModel`; names as in `ObjectiveSpec`.

    `matching` is a name of `MATCHINGS`, `norm` one of `NORMS`.
    """

    weighting: str = "unweighted"
    spread: str = "stratified"
    mixed_score: str = "none"
    matching: str = "hybrid"
    prediction: str = "eps"
    norm: str = "l2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LDMObjectiveSpec(SGMObjectiveSpec):
    """The objective of the prior of an LDM.

    Attributes:
        latent_scale: factor of the latents before they are diffused; 0 for one over the standard deviation of those
            of the first images.
    """

    latent_scale: float = 0.0

    def __post_init__(self):
        if self.latent_scale < 0.0:
            raise ValueError(f"latent_scale={self.latent_scale}: give a factor, or 0 to find one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """Settings of `lsgm evaluate`.

    Attributes:
        draws: draws of (z_0, t, eps) per image for the NELBO.
        importance_draws: latents per image for the importance-weighted bound.
        batch_size: images at a time, over all devices.
        samples: samples of the model for FID, KID, precision and recall.
        reference: the split that they are compared with; published FIDs take the training split.
        classifier_steps: training steps of the classifier that gives features where there are no weights of Inception.
            Enough for digits; photographs need more.
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
