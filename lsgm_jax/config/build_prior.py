"""Config -> what describes data or latents: a score network, its process and its objective."""

import jax.numpy as jnp

from lsgm_jax.config.registry import FIXED_PARTS, MATCHINGS, NORMS, SPREADS, WEIGHTINGS, Config
from lsgm_jax.config.section import attempt, build
from lsgm_jax.config.specs import SGMObjectiveSpec
from lsgm_jax.errors import ConfigError, look_up
from lsgm_jax.models.conditional import Conditioning
from lsgm_jax.models.sgm import SGM
from lsgm_jax.nn.mixed_score import FixedPart
from lsgm_jax.nn.network import Network
from lsgm_jax.nn.unet import UNet
from lsgm_jax.objectives.elbo import Objective
from lsgm_jax.objectives.time_densities import TimeDensity
from lsgm_jax.objectives.weightings import Weighting
from lsgm_jax.processes.cld import CLD, velocity_eps
from lsgm_jax.processes.linear import Process, sigma
from lsgm_jax.processes.predictions import PREDICTIONS, Prediction, eps, require_one_coordinate, v


def build_prior(
    config: Config, shape: tuple[int, ...], conditioning: Conditioning, bin_width: float = 0.0
) -> SGM:
    """A score-based model of samples of this shape."""
    spec = build("objective", config)
    process, density = build("process", config), build("density", config)
    check_density("density", process, density)
    return SGM(
        data_shape=shape,
        process=process,
        score_net=build_score_net(config, shape),
        objective=Objective(
            prior_weighting=build_weighting(process, spec.weighting),
            density=density,
            spread=look_up(SPREADS, spec.spread, "objective.spread"),
            norm=look_up(NORMS, spec.norm, "objective.norm"),
        ),
        bin_width=bin_width,
        fixed_part=build_fixed_part(process, spec.mixed_score),
        start=_known_start(process, spec),
        conditioning=conditioning,
        prediction=_prediction(process, spec),
    )


def build_score_net(config: Config, shape: tuple[int, ...]) -> Network:
    """The network of the score, for latents of this shape."""
    name, compute = config.score.name, build("compute", config)
    vectors = name == "mlp"
    if vectors != (len(shape) == 1):
        fitting = "vectors" if vectors else "maps (height, width, channels)"
        raise ConfigError(f"config.score.name={name!r} is for {fitting}, not for latents of shape {shape}")
    if vectors:
        return Network(build("score", config, out_features=shape[-1]), compute)
    token_width = config.conditioning.get("width")  # None: the context has no tokens
    given = {"out_channels": shape[-1]} | ({"context_width": token_width} if name == "ldm" else {})
    net = UNet(**given, **vars(build("score", config))) if name == "unet" else build("score", config, **given)
    if (refusal := net.refuse(shape)) is not None:
        raise ConfigError(f"config.score: {refusal}")
    if name == "dit" and net.cross_attention and token_width is None:
        raise ConfigError(
            "config.score.cross_attention=True needs tokens to attend to: "
            f"config.conditioning.name={config.conditioning.name!r} has none"
        )
    return Network(net, compute)


def build_weighting(process: Process, name: str) -> Weighting:
    """The weighting of this name, if the process has it."""
    weighting = look_up(WEIGHTINGS, name, "objective.weighting")
    attempt("objective.weighting", lambda: weighting(process, jnp.ones(1)))
    return weighting


def _prediction(process: Process, spec: SGMObjectiveSpec) -> Prediction:
    """What the output means. Other parts of a prediction are noise, and can be added to noise only."""
    prediction = look_up(PREDICTIONS, spec.prediction, "objective.prediction")
    asked = {"mixed_score": (spec.mixed_score, "none"), "matching": (spec.matching, "hybrid")}
    for key, (value, neutral) in asked.items():
        if prediction is not eps and value != neutral:
            raise ConfigError(
                f"config.objective.{key}={value!r} needs a network that predicts noise, not {spec.prediction}: "
                f"set it to {neutral!r}, or config.objective.prediction to 'eps'"
            )
    if prediction is v:
        attempt("objective.prediction", lambda: require_one_coordinate(process))
    return prediction


def build_fixed_part(process: Process, name: str) -> FixedPart | None:
    """The known part of the noise prediction that has this name, if it goes with the process."""
    part = look_up(FIXED_PARTS, name, "objective.mixed_score")
    if part is velocity_eps and not isinstance(process, CLD):
        raise ConfigError(
            f"config.objective.mixed_score={name!r} is for the process cld, not {type(process).__name__}: "
            "use 'gaussian'"
        )
    return part


def _known_start(process: Process, spec: SGMObjectiveSpec) -> Process | None:
    """What plain matching compares with; None for hybrid matching."""
    start = look_up(MATCHINGS, spec.matching, "objective.matching")
    if start is None:
        return None
    if not (isinstance(process, CLD) and process.v0_var_scale > 0.0):
        raise ConfigError(
            "config.objective.matching='plain' is for the process cld with v0_var_scale > 0, whose initial velocity "
            "may be known: use 'hybrid'"
        )
    return start(process)


def check_density(section: str, process: Process, density: TimeDensity) -> None:
    """Refuses times at which the process has no noise, or that it cannot draw."""
    attempt(section, lambda: density.density(process, jnp.ones(1)))
    if not sigma(process, jnp.asarray(density.t_min)) > 0.0:
        raise ConfigError(
            f"config.{section}.t_min={density.t_min}: the process has no noise there; choose a larger one"
        )
