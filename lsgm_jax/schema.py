"""What a config may say: the sections of each model, and the names in them.

The only registry: every name in a config is a key of a table here. The fields of the targets in the tables are the
schema of a config: a section takes what its target takes, with the target's defaults, and nothing else.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lsgm_jax.autoencoders.discriminator import PatchDiscriminator
from lsgm_jax.autoencoders.ldm import Levels
from lsgm_jax.autoencoders.likelihoods import (
    Bernoulli,
    Categorical,
    Cropped,
    DiscretisedLogistic,
    NormalPixels,
)
from lsgm_jax.autoencoders.mixture import MixtureOfLogistics
from lsgm_jax.autoencoders.nvae import NVAE
from lsgm_jax.data.points import PointSpec
from lsgm_jax.data.spec import SPLIT_NAMES, DataSpec
from lsgm_jax.diffusions.cld import CLD, velocity_eps
from lsgm_jax.diffusions.discrete import discrete_vp
from lsgm_jax.diffusions.linear import normal_eps
from lsgm_jax.diffusions.ve import VE
from lsgm_jax.diffusions.vp import VP, GeometricVP, SubVP
from lsgm_jax.models.conditional import UNCONDITIONAL, Labels, Texts, Unconditional
from lsgm_jax.models.network import Compute
from lsgm_jax.models.tasks import Inpainting, Upscaling
from lsgm_jax.objectives import times, weights
from lsgm_jax.objectives.adversarial import Game
from lsgm_jax.objectives.kl import KLSchedule
from lsgm_jax.objectives.matching import known_start, l1, l2
from lsgm_jax.objectives.times import Defensive, Optimal, Timesteps, Uniform
from lsgm_jax.scores.dit import DiT
from lsgm_jax.scores.ldm import LDMUNet
from lsgm_jax.scores.mlp import MLP
from lsgm_jax.scores.ncsnpp import NCSNpp
from lsgm_jax.scores.parameterise import FixedPart
from lsgm_jax.solvers.grids import EDM, Linear, LogSNR, Quadratic, Times
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.likelihood import Divergence
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.training.optim import adam, adamax, adamw
from lsgm_jax.training.parallel import Replicated, Sharded, whole
from lsgm_jax.training.penalty import Penalty
from lsgm_jax.training.spec import LDMTrainSpec, TrainSpec, TwoStageSpec

FEWEST_SAMPLES = 4  # for a distance to the third neighbour

Target = Callable[..., Any]
Config = Any  # an ml_collections.ConfigDict, whose attributes have no static types


class ConfigError(Exception):
    """A config that cannot be used; the message names the key, what is allowed and the nearest match."""


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
    """With latents held near a standard Normal; see `KLFirstStage`."""

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
    the network's output before that is mixed with the Normal prediction.
    """

    weighting: str = "likelihood"
    spread: str = "stratified"
    control_variate: bool = True
    encoder_meets_average: bool = False
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
    """

    draws: int = 16
    importance_draws: int = 10
    batch_size: int = 64
    samples: int = 50_000
    reference: str = "train"

    def __post_init__(self):
        for name in ("draws", "importance_draws", "batch_size"):
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


WEIGHTINGS = {
    "likelihood": weights.likelihood,
    "reweighted": weights.reweighted,
    "unweighted": weights.unweighted,
    "rescaled": weights.rescaled,
    "x_0": weights.x_0,
    "v": weights.v,
}
SPREADS = {
    "stratified": times.stratified,
    "equidistant": times.equidistant,
    "independent": times.independent,
}
NORMS = {"l2": l2, "l1": l1}
# The known part of the network's noise prediction.
FIXED_PARTS: dict[str, FixedPart | None] = {"none": None, "normal": normal_eps, "velocity": velocity_eps}
# What CLD's score is matched given, beside the data: nothing, or the velocity at time 0.
MATCHINGS: dict[str, Callable[[CLD], CLD] | None] = {"hybrid": None, "plain": known_start}
OPTIMISERS = {"adamax": adamax, "adam": adam, "adamw": adamw}


def optimal(*, weighting: str = "likelihood", t_min: float = 0.01) -> Optimal:
    """`Optimal` for a key of `WEIGHTINGS`."""
    return Optimal(weighting=_weighting(weighting), t_min=t_min)


def defensive(*, weighting: str = "likelihood", t_min: float = 0.01, uniform_share: float = 0.1) -> Defensive:
    """`Defensive` for a key of `WEIGHTINGS`."""
    return Defensive(weighting=_weighting(weighting), t_min=t_min, uniform_share=uniform_share)


def _weighting(name: str) -> weights.Weighting:
    if name not in WEIGHTINGS:  # `build` says which section it stands in
        near = did_you_mean(name, WEIGHTINGS)
        raise ValueError(f"weighting={name!r} is none of {', '.join(WEIGHTINGS)}{near}")
    return WEIGHTINGS[name]


def shared() -> None:
    """The encoder takes the prior's times."""


def unconditional() -> Unconditional:
    """Samples are all alike."""
    return UNCONDITIONAL


def cropped_bernoulli(*, levels: int = 2, border: int = 2) -> Cropped:
    """`Bernoulli` on the inside of padded images."""
    return Cropped(Bernoulli(levels=levels), border)


DENSITIES = {"uniform": Uniform, "optimal": optimal, "defensive": defensive, "timesteps": Timesteps}

CONDITIONINGS: dict[str, Target] = {"none": unconditional, "labels": Labels, "text": Texts}
TASKS: dict[str, Target] = {"inpainting": Inpainting, "upscaling": Upscaling}

# section -> target, or section -> table of targets, of which the section's `name` chooses one.
Sections = dict[str, Target | dict[str, Target]]
SHARED: Sections = {
    "process": {
        "vp": VP,
        "sub_vp": SubVP,
        "ve": VE,
        "geometric_vp": GeometricVP,
        "discrete_vp": discrete_vp,
        "cld": CLD,
    },
    "score": {"unet": UNetSpec, "ncsnpp": NCSNpp, "ldm": LDMUNet, "dit": DiT, "mlp": MLP},
    "compute": Compute,
    "conditioning": CONDITIONINGS,
    "density": DENSITIES,
    "solver": {**METHODS},
    "steps": {
        "adaptive": Adaptive,
        "linear": Linear,
        "quadratic": Quadratic,
        "log_snr": LogSNR,
        "edm": EDM,
        "times": Times,
    },
    "sampling": SamplingSpec,
    "divergence": Divergence,
    "eval": EvalSpec,
    "parallel": {"data": whole, "fsdp": Sharded, "pmap": Replicated},
}
# What a config describes, by the field `model`, and its sections.
MODELS: dict[str, Sections] = {
    "lsgm": {
        "data": {"images": DataSpec},
        "autoencoder": {"conv": ConvSpec, "nvae": NVAE},
        "likelihood": {
            "bernoulli": Bernoulli,
            "cropped_bernoulli": cropped_bernoulli,
            "discretised_logistic": DiscretisedLogistic,
            "mixture_of_logistics": MixtureOfLogistics,
            "normal_pixels": NormalPixels,
            "categorical": Categorical,
        },
        **SHARED,
        "objective": ObjectiveSpec,
        "encoder_density": {"shared": shared, **DENSITIES},
        "vae_stage": OPTIMISERS,
        "vae_kl": KLSchedule,
        "vae_penalty": Penalty,
        "joint_vae": OPTIMISERS,
        "joint_prior": OPTIMISERS,
        "joint_kl": KLSchedule,
        "joint_vae_penalty": Penalty,
        "joint_prior_penalty": Penalty,
        "train": TwoStageSpec,
    },
    "ldm": {
        "data": {"images": DataSpec},
        "autoencoder": {"kl": KLSpec, "vq": VQSpec},
        "perceptual": PerceptualSpec,
        "discriminator": PatchDiscriminator,
        "game": Game,
        "first_stage": OPTIMISERS,
        **SHARED,
        "conditioning": {**CONDITIONINGS, **TASKS},
        "objective": LDMObjectiveSpec,
        "optimiser": OPTIMISERS,
        "train": LDMTrainSpec,
    },
    "sgm": {
        "data": {"images": DataSpec, "points": PointSpec},
        **SHARED,
        "objective": SGMObjectiveSpec,
        "optimiser": OPTIMISERS,
        "penalty": Penalty,
        "train": TrainSpec,
    },
}
# What a section's `name` is if a config does not say.
DEFAULT_NAMES = {
    "conditioning": "none",
    "encoder_density": "shared",
    "data": "images",
    "solver": "Tsit5",
    "steps": "adaptive",
    "parallel": "data",
}
# Arguments that another section decides, or that the stage gives.
GIVEN = {
    # A Linen module's own fields, and what the likelihood or the latent decides.
    "autoencoder": ("out_channels", "parent", "name"),
    "discriminator": ("parent", "name"),
    # `context_width` is that of the conditioning.
    "score": ("out_channels", "out_features", "context_width", "parent", "name"),
    "likelihood": ("levels",),
    "vae_stage": ("steps",),
    "joint_vae": ("steps",),
    "joint_prior": ("steps",),
    "optimiser": ("steps",),
    "first_stage": ("steps",),
}


def sections(model: str) -> Sections:
    """The sections of a model's config.

    Raises:
        ConfigError: if there is no such model.
    """
    return look_up(MODELS, model, "model")


def look_up(table: Mapping[str, Any], name: str, key: str) -> Any:
    """`table[name]`.

    Raises:
        ConfigError: if there is no such entry; lists the entries.
    """
    if name not in table:
        raise ConfigError(f"config.{key}={name!r} is none of {', '.join(table)}{did_you_mean(name, table)}")
    return table[name]


def did_you_mean(word: Any, options: Iterable[str]) -> str:
    """'; did you mean ...?' for a near miss, else nothing."""
    match = difflib.get_close_matches(str(word), list(options), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def section_target(section: str, config: Config) -> Target:
    """The target that a section's `name` chooses, or its only one."""
    target = sections(config["model"])[section]
    if isinstance(target, dict):
        return look_up(target, config[section].get("name", "(none)"), f"{section}.name")
    return target


def schema(section: str, target: Target) -> dict[str, inspect.Parameter]:
    """The fields a section may set, with their defaults."""
    parameters = inspect.signature(target).parameters
    return {name: p for name, p in parameters.items() if name not in GIVEN.get(section, ())}
