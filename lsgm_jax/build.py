"""Config -> objects. The only registry: every name in a config is a key of a table here.

The fields of the targets in the tables are the schema of a config: a section takes what its target takes, with
the target's defaults, and nothing else.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsgm_jax.autoencoders.conv import ConvDecoder, ConvEncoder
from lsgm_jax.autoencoders.likelihoods import (
    Bernoulli,
    Categorical,
    Cropped,
    DiscretisedLogistic,
    Likelihood,
    NormalPixels,
)
from lsgm_jax.autoencoders.mixture import MixtureOfLogistics
from lsgm_jax.autoencoders.nvae import NVAE
from lsgm_jax.data.pipeline import DataSpec
from lsgm_jax.data.points import PointSpec
from lsgm_jax.diffusions.cld import CLD, velocity_eps
from lsgm_jax.diffusions.linear import Process, normal_eps, sigma
from lsgm_jax.diffusions.ve import VE
from lsgm_jax.diffusions.vp import VP, GeometricVP, SubVP
from lsgm_jax.models.backbones import Flat, Hierarchical
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.network import Network
from lsgm_jax.models.sgm import SGM, FixedPart
from lsgm_jax.models.vae import VAE
from lsgm_jax.objectives import times, weights
from lsgm_jax.objectives.elbo import Objective
from lsgm_jax.objectives.times import Defensive, Optimal, TimeDensity, Uniform
from lsgm_jax.scores.mlp import MLP
from lsgm_jax.scores.ncsnpp import NCSNpp
from lsgm_jax.scores.unet import UNet
from lsgm_jax.solvers.grids import EDM, Linear, LogSNR, Quadratic, Times
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.likelihood import Divergence
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler
from lsgm_jax.training.loop import TrainSpec, TwoStageSpec
from lsgm_jax.training.optim import adamax, adamw, per_part

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
    """The joint stage; see `Objective` and `LSGM`. `weighting` is a key of `WEIGHTINGS`, `spread` one of `SPREADS`."""

    weighting: str = "likelihood"
    spread: str = "stratified"
    control_variate: bool = True
    mixing_logit_init: float = -3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGMObjectiveSpec:
    """How an `SGM` is trained; names as in `ObjectiveSpec`. `mixed_score` is a key of `FIXED_PARTS`."""

    weighting: str = "unweighted"
    spread: str = "stratified"
    mixed_score: str = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """How sampling starts and ends; see `Sampler`."""

    t_min: float = 1e-5
    denoise: str = "none"
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """What `lsgm evaluate` averages: draws of (z_0, t, eps) per image, and latents of the importance-weighted bound."""

    draws: int = 16
    importance_draws: int = 10
    batch_size: int = 64

    def __post_init__(self):
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}={value}: give a positive number")


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
}
SPREADS = {
    "stratified": times.stratified,
    "equidistant": times.equidistant,
    "independent": times.independent,
}
# The known part of an SGM's noise prediction.
FIXED_PARTS: dict[str, FixedPart | None] = {"none": None, "normal": normal_eps, "velocity": velocity_eps}
OPTIMISERS = {"adamax": adamax, "adamw": adamw}


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


def cropped_bernoulli(*, levels: int = 2, border: int = 2) -> Cropped:
    """`Bernoulli` on the inside of padded images."""
    return Cropped(Bernoulli(levels=levels), border)


DENSITIES = {"uniform": Uniform, "optimal": optimal, "defensive": defensive}

# section -> target, or section -> table of targets, of which the section's `name` chooses one.
Sections = dict[str, Target | dict[str, Target]]
SHARED: Sections = {
    "process": {"vp": VP, "sub_vp": SubVP, "ve": VE, "geometric_vp": GeometricVP, "cld": CLD},
    "score": {"unet": UNetSpec, "ncsnpp": NCSNpp, "mlp": MLP},
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
        "joint_vae": OPTIMISERS,
        "joint_prior": OPTIMISERS,
        "train": TwoStageSpec,
    },
    "sgm": {
        "data": {"images": DataSpec, "points": PointSpec},
        **SHARED,
        "objective": SGMObjectiveSpec,
        "optimiser": OPTIMISERS,
        "train": TrainSpec,
    },
}
# What a section's `name` is if a config does not say.
DEFAULT_NAMES = {"encoder_density": "shared", "data": "images", "solver": "Tsit5", "steps": "adaptive"}
# Arguments that another section decides, or that the stage gives.
GIVEN = {
    # A Linen module's own fields, and what the likelihood or the latent decides.
    "autoencoder": ("out_channels", "parent", "name"),
    "score": ("out_channels", "out_features", "parent", "name"),
    "likelihood": ("levels",),
    "vae_stage": ("steps",),
    "joint_vae": ("steps",),
    "joint_prior": ("steps",),
    "optimiser": ("steps",),
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


def build(section: str, config: Config, **given: Any) -> Any:
    """Makes the object that a section describes.

    Args:
        given: the arguments named in `GIVEN`.

    Raises:
        ConfigError: if the target refuses a value.
    """
    target = section_target(section, config)
    fields = {name: value for name, value in config[section].items() if name in schema(section, target)}
    try:
        return target(**fields, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.{section}: {error}") from error


def build_vae(config: Config) -> VAE:
    """The autoencoder with its likelihood."""
    image_shape = build("data", config).image_shape
    likelihood = build("likelihood", config, levels=config.data.levels)
    features = _count_features(likelihood, image_shape)
    make = _hierarchical if config.autoencoder.name == "nvae" else _flat
    backbone = make(config, image_shape, features)
    return VAE(
        image_shape=image_shape, latent_shape=backbone.latent_shape, backbone=backbone, likelihood=likelihood
    )


def _flat(config: Config, image_shape: tuple[int, int, int], features: int) -> Flat:
    spec = build("autoencoder", config)
    height, width, _ = image_shape
    shrink = 2 ** (len(spec.channels) - 1)
    if height % shrink or width % shrink:
        raise ConfigError(
            f"config.data.image_shape={image_shape} cannot be halved {len(spec.channels) - 1} times: "
            "resize the images or give config.autoencoder.channels fewer entries"
        )
    encoder = ConvEncoder(spec.channels, spec.blocks, spec.latent_channels, spec.dropout)
    decoder = ConvDecoder(spec.channels, spec.blocks, features, spec.dropout)
    return Flat(
        image_shape=image_shape,
        latent_shape=(height // shrink, width // shrink, spec.latent_channels),
        encoder=Network(encoder),
        decoder=Network(decoder),
    )


def _hierarchical(config: Config, image_shape: tuple[int, int, int], features: int) -> Hierarchical:
    net = build("autoencoder", config, out_channels=features)
    try:
        return Hierarchical(image_shape=image_shape, net=net)
    except ValueError as error:
        raise ConfigError(f"config.autoencoder: {error}") from error


def _count_features(likelihood: Likelihood, image_shape: tuple[int, ...]) -> int:
    """Features per pixel; tries the likelihood on shapes, so that it can refuse images it does not fit."""
    try:
        features = likelihood.channels(image_shape[-1])
        shapes = (
            jax.ShapeDtypeStruct((1, *image_shape[:-1], c), jnp.float32) for c in (features, image_shape[-1])
        )
        jax.eval_shape(likelihood.log_prob, *shapes)
    except ValueError as error:
        raise ConfigError(f"config.likelihood: {error}") from error
    return features


def build_lsgm(config: Config) -> LSGM:
    """The whole model."""
    vae, spec = build_vae(config), build("objective", config)
    score_net = build_score_net(config, vae.latent_shape)
    weighting = look_up(WEIGHTINGS, spec.weighting, "objective.weighting")
    process, density = build("process", config), build("density", config)
    encoder_density = build("encoder_density", config)
    _check_noise("density", process, density)
    if encoder_density is not None:
        _check_noise("encoder_density", process, encoder_density)
    return LSGM(
        vae=vae,
        process=process,
        score_net=score_net,
        objective=Objective(
            prior_weighting=weighting,
            density=density,
            encoder_density=encoder_density,
            spread=look_up(SPREADS, spec.spread, "objective.spread"),
            control_variate=spec.control_variate,
        ),
        mixing_logit_init=spec.mixing_logit_init,
    )


def build_sgm(config: Config) -> SGM:
    """A model of the data itself."""
    data, spec = build("data", config), build("objective", config)
    process, density = build("process", config), build("density", config)
    _check_noise("density", process, density)
    if spec.mixed_score == "velocity" and not isinstance(process, CLD):
        raise ConfigError(
            f"config.objective.mixed_score='velocity' is for the process cld, not {config.process.name}: use 'normal'"
        )
    return SGM(
        data_shape=data.shape,
        process=process,
        score_net=build_score_net(config, data.shape),
        objective=Objective(
            prior_weighting=look_up(WEIGHTINGS, spec.weighting, "objective.weighting"),
            density=density,
            spread=look_up(SPREADS, spec.spread, "objective.spread"),
        ),
        bin_width=data.bin_width,
        fixed_part=look_up(FIXED_PARTS, spec.mixed_score, "objective.mixed_score"),
    )


def build_model(config: Config) -> LSGM | SGM:
    """The model that `config.model` names."""
    return {"lsgm": build_lsgm, "sgm": build_sgm}[config.model](config)


def build_score_net(config: Config, shape: tuple[int, ...]) -> Network:
    """The network of the score, for latents of this shape."""
    vectors = config.score.name == "mlp"
    if vectors != (len(shape) == 1):
        fitting = "vectors" if vectors else "maps (height, width, channels)"
        raise ConfigError(
            f"config.score.name={config.score.name!r} is for {fitting}, not for latents of shape {shape}"
        )
    if vectors:
        return Network(build("score", config, out_features=shape[-1]))
    if config.score.name == "unet":
        spec = build("score", config)
        net, levels = UNet(out_channels=shape[-1], **vars(spec)), len(spec.channels)
    else:
        net = build("score", config, out_channels=shape[-1])
        levels = len(net.channel_mult)
    if min(shape[:2]) % 2 ** (levels - 1):
        raise ConfigError(
            f"config.score halves the {shape} latent {levels - 1} times, which its sides do not bear: "
            "give fewer levels"
        )
    return Network(net)


def _check_noise(section: str, process: Process, density: TimeDensity) -> None:
    if not sigma(process, jnp.asarray(density.t_min)) > 0.0:
        raise ConfigError(
            f"config.{section}.t_min={density.t_min}: the process has no noise there; choose a larger one"
        )


def build_sampler(config: Config) -> Sampler:
    """Solver, steps and ends.

    Raises:
        ConfigError: if they do not go together, or the solver cannot integrate the process.
    """
    method, spec = build("solver", config), build("sampling", config)
    if (refusal := method.refuse(build("process", config))) is not None:
        raise ConfigError(f"config.solver: {refusal}")
    try:
        return Sampler(method=method, steps=build("steps", config), **vars(spec))
    except ValueError as error:
        raise ConfigError(f"config.sampling: {error}") from error


def build_optimiser(config: Config, stage: str) -> optax.GradientTransformation:
    """The optimiser of a stage: "vae" or "joint" of an LSGM, "score" of an SGM."""
    steps = config.train.steps
    if stage == "vae":
        return build("vae_stage", config, steps=config.train.vae_steps)
    if stage == "score":
        return build("optimiser", config, steps=steps)
    return per_part(build("joint_vae", config, steps=steps), build("joint_prior", config, steps=steps))
