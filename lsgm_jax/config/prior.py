"""Sections of a config -> the score model of data or latents."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lsgm_jax.conditioning.protocol import Conditioning
from lsgm_jax.config.registry import FIXED_PARTS, MATCHINGS, NORMS, SPREADS, WEIGHTINGS, resolve
from lsgm_jax.config.specs import ObjectiveSpec, SGMObjectiveSpec
from lsgm_jax.errors import ConfigError, look_up
from lsgm_jax.models.score_model import FixedPart, ScoreModel, Start
from lsgm_jax.nn.network import Network
from lsgm_jax.objectives.elbo import Objective
from lsgm_jax.objectives.time_densities import TimeDensity
from lsgm_jax.objectives.weightings import Weighting
from lsgm_jax.processes.cld import CLD, velocity_eps
from lsgm_jax.processes.linear import Process, has_noise
from lsgm_jax.processes.predictions import PREDICTIONS, Prediction, eps, require_one_coordinate, v

Spec = ObjectiveSpec | SGMObjectiveSpec


@runtime_checkable
class Make(Protocol):
    """Makes the object of a section, given the arguments that other sections decide; see `factory.Sections`."""

    def __call__(self, section: str, **given: Any) -> Any:
        """Returns the object."""
        ...

    def name(self, section: str) -> str:
        """Returns the name that the section gives its object, for messages."""
        ...


def build_prior(make: Make, shape: tuple[int, ...], conditioning: Conditioning, **encoder: Any) -> ScoreModel:
    """Builds a score model of samples of this shape.

    Args:
        encoder: fields of the `Objective` that concern an encoder.
    """
    spec, process, density = make("objective"), make("process"), make("density")
    require_density("density", process, density)
    joint = isinstance(spec, ObjectiveSpec)
    return ScoreModel(
        shape=shape,
        process=process,
        net=_score_net(make, shape, conditioning),
        objective=Objective(
            prior_weighting=_weighting(process, spec.weighting),
            density=density,
            spread=resolve(SPREADS, spec.spread, "objective.spread"),
            norm=resolve(NORMS, "l2" if joint else spec.norm, "objective.norm"),
            **encoder,
        ),
        prediction=_prediction(process, spec),
        fixed_part=_fixed_part(process, spec.mixed_score),
        start=None if joint else _start(process, spec),
        mixing_logit_init=spec.mixing_logit_init if joint else None,
        inactive_kl=spec.inactive_kl if joint else 0.0,
        conditioning=conditioning,
    )


def _score_net(make: Make, shape: tuple[int, ...], conditioning: Conditioning) -> Network:
    """The score network, for latents of this shape."""
    width = conditioning.width
    net = make("score", out_channels=shape[-1], context_width=width)
    refuse = getattr(net, "refuse", None)
    if refuse is not None and (refusal := refuse(shape)) is not None:
        raise ConfigError(f"config.score: {refusal}")
    if getattr(net, "cross_attention", False) and width is None:
        raise ConfigError(
            "config.score.cross_attention=True needs tokens to attend to: "
            f"config.conditioning.name={make.name('conditioning')!r} has none; choose 'labels' or 'text'"
        )
    return Network(net, make("compute"))


def _weighting(process: Process, name: str) -> Weighting:
    """The weighting of this name, if the process has it."""
    weighting = resolve(WEIGHTINGS, name, "objective.weighting")
    _attempt("objective.weighting", lambda: weighting(process, jnp.ones(1)))
    return weighting


def _prediction(process: Process, spec: Spec) -> Prediction:
    """The meaning of the network's output. Known parts of a prediction are noise, and can be added to noise only."""
    prediction = resolve(PREDICTIONS, spec.prediction, "objective.prediction")
    chosen = {"mixed_score": (spec.mixed_score, "none")}
    if isinstance(spec, SGMObjectiveSpec):
        chosen["matching"] = (spec.matching, "hybrid")
    for key, (value, neutral) in chosen.items():
        if prediction is not eps and value != neutral:
            raise ConfigError(
                f"config.objective.{key}={value!r} needs a network that predicts noise, not {spec.prediction}: "
                f"set it to {neutral!r}, or config.objective.prediction to 'eps'"
            )
    if prediction is v:
        _attempt("objective.prediction", lambda: require_one_coordinate(process))
    return prediction


def _fixed_part(process: Process, name: str) -> FixedPart | None:
    """The known part of the noise prediction that has this name, if it fits the process."""
    part = look_up(FIXED_PARTS, name, "objective.mixed_score")
    if part is velocity_eps and not isinstance(process, CLD):
        raise ConfigError(
            f"config.objective.mixed_score={name!r} is for the process cld, not {type(process).__name__}: "
            "use 'gaussian'"
        )
    return part


def _start(process: Process, spec: SGMObjectiveSpec) -> Start | None:
    """The start that plain score matching compares with; None for hybrid score matching."""
    start = look_up(MATCHINGS, spec.matching, "objective.matching")
    if start is not None and not (isinstance(process, CLD) and process.v0_var_scale > 0.0):
        raise ConfigError(
            "config.objective.matching='plain' is for the process cld with v0_var_scale > 0, whose initial velocity "
            "may be known: use 'hybrid'"
        )
    return start


def refuse_shared_t(*, encoder_uses_ema: bool) -> None:
    """Refuses an encoder that uses the EMA prior at the t of the prior.

    Raises:
        ConfigError: if it does.
    """
    if encoder_uses_ema:
        raise ConfigError(
            "config.objective.encoder_uses_ema=True needs a separate t for the encoder: "
            "set config.encoder_density.name, to 'optimal' say"
        )


def require_density(section: str, process: Process, density: TimeDensity) -> None:
    """Refuses times at which the process has no noise, or that it cannot draw.

    Raises:
        ConfigError: if the density does not fit the process.
    """
    _attempt(section, lambda: density.density(process, jnp.ones(1)))
    if not has_noise(process, density.t_min):
        raise ConfigError(
            f"config.{section}.t_min={density.t_min}: the process has no noise there; choose a larger one"
        )


def _attempt(key: str, function: Callable[[], Any]) -> None:
    """Refuses what a function, on shapes alone, refuses."""
    try:
        jax.eval_shape(function)
    except ValueError as error:
        raise ConfigError(f"config.{key}: {error}") from error
