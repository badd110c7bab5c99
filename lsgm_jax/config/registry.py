"""Names of a config, and what they stand for.

Every name in a config is a key of a table here, or an import path "package.module:Name". The signature of what a name
stands for is the schema of its section: a section takes these fields with these defaults, and no others.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lsgm_jax.autoencoders.backbones import conv_backbone, nvae_backbone
from lsgm_jax.autoencoders.likelihoods import (
    Bernoulli,
    Categorical,
    Cropped,
    DiscretisedLogistic,
    GaussianPixels,
)
from lsgm_jax.autoencoders.mixture import MixtureOfLogistics
from lsgm_jax.autoencoders.nvae import NVAE
from lsgm_jax.conditioning.images import Inpainting, Upscaling
from lsgm_jax.conditioning.labels import Labels
from lsgm_jax.conditioning.protocol import UNCONDITIONAL, Unconditional
from lsgm_jax.conditioning.text import Texts
from lsgm_jax.config.specs import (
    KLSpec,
    VQSpec,
)
from lsgm_jax.errors import ConfigError, did_you_mean, first_line
from lsgm_jax.models.score_model import FixedPart
from lsgm_jax.nn.dit import DiT
from lsgm_jax.nn.ldm import LDMUNet
from lsgm_jax.nn.mlp import MLP
from lsgm_jax.nn.ncsnpp import NCSNpp
from lsgm_jax.nn.unet import UNet
from lsgm_jax.objectives import time_densities, weightings
from lsgm_jax.objectives.score_matching import Norm, known_start, l1, l2
from lsgm_jax.objectives.time_densities import Defensive, Optimal, Spread, Timesteps, Uniform
from lsgm_jax.objectives.weightings import Weighting
from lsgm_jax.processes.cld import CLD, velocity_eps
from lsgm_jax.processes.discrete import discrete_vp
from lsgm_jax.processes.linear import gaussian_eps
from lsgm_jax.processes.ve import VE
from lsgm_jax.processes.vp import VP, GeometricVP, SubVP
from lsgm_jax.solvers.grids import GRIDS, Default, Times
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.training.optim import Adam, Adamax, AdamW
from lsgm_jax.training.sharding import Replicated, Sharded, whole

Target = Callable[..., Any]
Config = Any  # an ml_collections.ConfigDict, whose attributes have no static types


class Section(NamedTuple):
    """A section of a config.

    Attributes:
        targets: what the section describes: one object, or a table of them from which its `name` chooses.
        default: the name if a config gives none.
        given: arguments of targets that are no fields: other sections decide them.
    """

    targets: Target | dict[str, Target]
    default: str | None = None
    given: tuple[str, ...] = ()

    def target(self, section: str, name: str | None) -> Target:
        """Returns what `name` chooses, or the only target.

        Args:
            section: name of the section, for messages.
        """
        if isinstance(self.targets, dict):
            return resolve(self.targets, name or "(none)", f"{section}.name")
        return self.targets


def resolve(table: dict[str, Any], name: str, key: str) -> Any:
    """Returns what a name of a config stands for: the entry of a table, or the object at an import path.

    Args:
        key: of the config, for the message.

    Raises:
        ConfigError: if there is no such entry, module or object.
    """
    if isinstance(name, str) and name in table:
        return table[name]
    if not isinstance(name, str) or ":" not in name:
        near = did_you_mean(name, table) or '; an import path is "module:Name"'
        raise ConfigError(f"config.{key}={name!r} is none of {', '.join(table)}{near}")
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    # A module of the user may raise anything.
    except Exception as error:
        raise ConfigError(f"config.{key}={name!r} cannot be imported: {first_line(error)}") from error
    if not callable(found):
        raise ConfigError(f"config.{key}={name!r} is neither a class nor a function")
    return found


def fields(section: Section, target: Target) -> dict[str, inspect.Parameter]:
    """Returns the fields that a section may set, with their defaults."""
    parameters = signature(target)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in parameters.items() if name not in section.given and p.kind not in kinds}


def signature(target: Target) -> Mapping[str, inspect.Parameter]:
    """Returns the arguments of a target, with evaluated annotations where that is possible.

    Raises:
        ConfigError: if the object has no arguments, so that no section can describe it.
    """
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:
        return inspect.signature(target).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{target!r} is nothing that a config can build: give a class or a function"
        ) from error


def with_fields_of(source: Target, target: Target) -> Target:
    """Returns `target` with the arguments of `source` in place of its `**fields`."""

    def call(**arguments: Any) -> Any:
        return target(**arguments)

    own = list(signature(target).values())[:-1]
    names = {parameter.name for parameter in own}
    more = [p.replace(kind=p.KEYWORD_ONLY) for p in signature(source).values()]
    parameters = [*own, *(p for p in more if p.name not in names)]
    call.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return call


# Names inside sections.

WEIGHTINGS: dict[str, Weighting] = {
    "likelihood": weightings.likelihood,
    "reweighted": weightings.reweighted,
    "unweighted": weightings.unweighted,
    "rescaled": weightings.rescaled,
    "x_0": weightings.x_0,
    "v": weightings.v,
    "velocity": weightings.velocity,
}
SPREADS: dict[str, Spread] = {
    "stratified": time_densities.stratified,
    "equidistant": time_densities.equidistant,
    "independent": time_densities.independent,
}
NORMS: dict[str, Norm] = {"l2": l2, "l1": l1}
# The known part of the network's noise prediction.
FIXED_PARTS: dict[str, FixedPart | None] = {"none": None, "gaussian": gaussian_eps, "velocity": velocity_eps}
# The start of CLD that its score is matched given: the data alone, or the velocity at time 0 as well.
MATCHINGS: dict[str, Callable[[CLD], CLD] | None] = {"hybrid": None, "plain": known_start}


def optimal(*, weighting: str = "likelihood", t_min: float = 0.01) -> Optimal:
    """Returns `Optimal` for a name of `WEIGHTINGS`."""
    return Optimal(weighting=_weighting(weighting), t_min=t_min)


def defensive(*, weighting: str = "likelihood", t_min: float = 0.01, uniform_share: float = 0.1) -> Defensive:
    """Returns `Defensive` for a name of `WEIGHTINGS`."""
    return Defensive(weighting=_weighting(weighting), t_min=t_min, uniform_share=uniform_share)


def _weighting(name: str) -> Weighting:
    try:
        return resolve(WEIGHTINGS, name, "weighting")
    except ConfigError as error:  # the section's name is added where it is built
        raise ValueError(str(error).removeprefix("config.")) from error


def shared() -> None:
    """Returns None: the encoder shares the t of the prior."""


def unconditional() -> Unconditional:
    """Returns the conditioning of an unconditional model."""
    return UNCONDITIONAL


def cropped_bernoulli(*, levels: int = 2, border: int = 2) -> Cropped:
    """Returns `Bernoulli` on the inside of padded images."""
    return Cropped(Bernoulli(levels=levels), border)


# Names of sections.

PROCESSES: dict[str, Target] = {
    "vp": VP,
    "sub_vp": SubVP,
    "ve": VE,
    "geometric_vp": GeometricVP,
    "discrete_vp": discrete_vp,
    "cld": CLD,
}
NETWORKS: dict[str, Target] = {"unet": UNet, "ncsnpp": NCSNpp, "ldm": LDMUNet, "dit": DiT, "mlp": MLP}
AUTOENCODERS: dict[str, Target] = {"conv": conv_backbone, "nvae": with_fields_of(NVAE, nvae_backbone)}
FIRST_STAGES: dict[str, Target] = {"kl": KLSpec, "vq": VQSpec}
LIKELIHOODS: dict[str, Target] = {
    "bernoulli": Bernoulli,
    "cropped_bernoulli": cropped_bernoulli,
    "discretised_logistic": DiscretisedLogistic,
    "mixture_of_logistics": MixtureOfLogistics,
    "gaussian_pixels": GaussianPixels,
    "categorical": Categorical,
}
DENSITIES: dict[str, Target] = {
    "uniform": Uniform,
    "optimal": optimal,
    "defensive": defensive,
    "timesteps": Timesteps,
}
CONDITIONINGS: dict[str, Target] = {"none": unconditional, "labels": Labels, "text": Texts}
TASKS: dict[str, Target] = {"inpainting": Inpainting, "upscaling": Upscaling}
STEPS: dict[str, Target] = {"adaptive": Adaptive, "default": Default, **GRIDS, "times": Times}
LAUNCHERS: dict[str, Target] = {"data": whole, "fsdp": Sharded, "pmap": Replicated}
OPTIMISERS: dict[str, Target] = {"adamax": Adamax, "adam": Adam, "adamw": AdamW}
