"""What a config may say: the sections of each model, and the names in them.

The only registry: every name in a config is a key of a table here. The fields of the targets in the tables are the
schema of a config: a section takes what its target takes, with the target's defaults, and nothing else.
"""

import inspect
from collections.abc import Callable
from typing import Any

from lsgm_jax.autoencoders.discriminator import PatchDiscriminator
from lsgm_jax.autoencoders.likelihoods import (
    Bernoulli,
    Categorical,
    Cropped,
    DiscretisedLogistic,
    GaussianPixels,
)
from lsgm_jax.autoencoders.mixture import MixtureOfLogistics
from lsgm_jax.autoencoders.nvae import NVAE
from lsgm_jax.config.specs import (
    ConvSpec,
    EvalSpec,
    KLSpec,
    LDMObjectiveSpec,
    ObjectiveSpec,
    PerceptualSpec,
    SamplingSpec,
    SGMObjectiveSpec,
    UNetSpec,
    VQSpec,
)
from lsgm_jax.data.points import PointSpec
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.errors import did_you_mean, look_up
from lsgm_jax.models.conditional import UNCONDITIONAL, Labels, Texts, Unconditional
from lsgm_jax.models.tasks import Inpainting, Upscaling
from lsgm_jax.nn.dit import DiT
from lsgm_jax.nn.ldm import LDMUNet
from lsgm_jax.nn.mixed_score import FixedPart
from lsgm_jax.nn.mlp import MLP
from lsgm_jax.nn.ncsnpp import NCSNpp
from lsgm_jax.nn.network import Compute
from lsgm_jax.objectives import time_densities, weightings
from lsgm_jax.objectives.gan import GANLoss
from lsgm_jax.objectives.kl import KLSchedule
from lsgm_jax.objectives.score_matching import known_start, l1, l2
from lsgm_jax.objectives.time_densities import Defensive, Optimal, Timesteps, Uniform
from lsgm_jax.processes.cld import CLD, velocity_eps
from lsgm_jax.processes.discrete import discrete_vp
from lsgm_jax.processes.linear import gaussian_eps
from lsgm_jax.processes.ve import VE
from lsgm_jax.processes.vp import VP, GeometricVP, SubVP
from lsgm_jax.solvers.grids import EDM, Linear, LogSNR, Quadratic, Times
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.likelihood import Divergence
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.training.optim import Adam, Adamax, AdamW
from lsgm_jax.training.penalty import Penalty
from lsgm_jax.training.sharding import Replicated, Sharded, whole
from lsgm_jax.training.spec import LDMTrainSpec, TrainSpec, TwoStageSpec

Target = Callable[..., Any]
Config = Any  # an ml_collections.ConfigDict, whose attributes have no static types

WEIGHTINGS = {
    "likelihood": weightings.likelihood,
    "reweighted": weightings.reweighted,
    "unweighted": weightings.unweighted,
    "rescaled": weightings.rescaled,
    "x_0": weightings.x_0,
    "v": weightings.v,
}
SPREADS = {
    "stratified": time_densities.stratified,
    "equidistant": time_densities.equidistant,
    "independent": time_densities.independent,
}
NORMS = {"l2": l2, "l1": l1}
# The known part of the network's noise prediction.
FIXED_PARTS: dict[str, FixedPart | None] = {"none": None, "gaussian": gaussian_eps, "velocity": velocity_eps}
# What CLD's score is matched given, beside the data: nothing, or the velocity at time 0.
MATCHINGS: dict[str, Callable[[CLD], CLD] | None] = {"hybrid": None, "plain": known_start}
OPTIMISERS = {"adamax": Adamax, "adam": Adam, "adamw": AdamW}


def optimal(*, weighting: str = "likelihood", t_min: float = 0.01) -> Optimal:
    """`Optimal` for a key of `WEIGHTINGS`."""
    return Optimal(weighting=_weighting(weighting), t_min=t_min)


def defensive(*, weighting: str = "likelihood", t_min: float = 0.01, uniform_share: float = 0.1) -> Defensive:
    """`Defensive` for a key of `WEIGHTINGS`."""
    return Defensive(weighting=_weighting(weighting), t_min=t_min, uniform_share=uniform_share)


def _weighting(name: str) -> weightings.Weighting:
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
            "gaussian_pixels": GaussianPixels,
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
        "gan_loss": GANLoss,
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
}


def sections(model: str) -> Sections:
    """The sections of a model's config.

    Raises:
        ConfigError: if there is no such model.
    """
    return look_up(MODELS, model, "model")


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
