"""Config -> objects: one frozen `Experiment`, built once."""

import dataclasses
from typing import Any

from lsgm_jax.config.models import MODELS, sections
from lsgm_jax.config.registry import Config, fields, signature
from lsgm_jax.config.specs import EvalSpec
from lsgm_jax.data.points import PointSpec
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.errors import ConfigError
from lsgm_jax.models.protocol import Model
from lsgm_jax.processes.linear import Process, has_noise
from lsgm_jax.solvers.grids import Times
from lsgm_jax.solvers.likelihood import Divergence
from lsgm_jax.solvers.method import Method
from lsgm_jax.solvers.sampler import Sampler
from lsgm_jax.training.recipes.recipe import Recipe
from lsgm_jax.training.sharding import Launcher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that a config describes.

    Attributes:
        name: kind of the model, the field `model` of the config.
        data: the data set.
        model: the model.
        conditioning: the conditions of its samples: of labels, of texts, of images, or none.
        training: what is trained, stage by stage.
        sampler: solver, steps, and guidance scale.
        divergence: of the probability flow, for likelihoods.
        evaluation: settings of `lsgm evaluate`.
        parallel: how devices share the work.
        seed: of all random numbers of training.
    """

    name: str
    data: DataSpec | PointSpec
    model: Model
    conditioning: Any
    training: Recipe
    sampler: Sampler
    divergence: Divergence
    evaluation: EvalSpec
    parallel: Launcher
    seed: int


def experiment(config: Config) -> Experiment:
    """Builds the experiment of a complete config.

    Raises:
        ConfigError: for a value that is refused; names the section and the remedy.
    """
    make, kind = Sections(config), MODELS[config.model]
    sampler = _sampler(make)
    if sampler.guidance != 1.0 and make.name("conditioning") == "none":
        raise ConfigError(
            f"config.sampling.guidance={sampler.guidance} is for a model of conditions: "
            "this one has config.conditioning.name='none'"
        )
    model = kind.model(make)
    _refuse_singular_end(sampler, model.prior.process)
    return Experiment(
        name=config.model,
        data=make("data"),
        model=model,
        conditioning=make("conditioning"),
        training=kind.recipe(make, model, config.seed),
        sampler=sampler,
        divergence=make("divergence"),
        evaluation=make("eval"),
        parallel=make("parallel"),
        seed=config.seed,
    )


class Sections:
    """Makes the objects of the sections of one config."""

    def __init__(self, config: Config):
        self._config, self._sections = config, sections(config.model)

    def __call__(self, section: str, **given: Any) -> Any:
        """Makes the object of a section.

        Args:
            given: arguments that other sections decide; the object takes those that its signature has.

        Raises:
            ConfigError: if it refuses a value.
        """
        described, values = self._sections[section], self._config[section]
        target = described.target(section, values.get("name"))
        allowed, takes = fields(described, target), signature(target)
        chosen = {name: value for name, value in values.items() if name in allowed}
        offered = {name: value for name, value in given.items() if name in takes}
        try:
            return target(**chosen, **offered)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.{section}: {error}") from error

    def name(self, section: str) -> str:
        """Returns the name that the section gives its object, for messages."""
        return self._config[section].name


def _refuse_singular_end(sampler: Sampler, process: Process) -> None:
    """Refuses to sample down to a time at which the score is infinite, for want of noise."""
    if not isinstance(sampler.steps, Times) and not has_noise(process, sampler.t_min):
        raise ConfigError(
            f"config.sampling.t_min={sampler.t_min}: {type(process).__name__} has no noise there, and its score is "
            "infinite: choose a larger time, such as 1e-5"
        )


def _sampler(make: Sections) -> Sampler:
    method = make("solver")
    if not isinstance(method, Method):
        raise ConfigError(
            f"config.solver.name={make.name('solver')!r} makes no Method but {type(method).__name__}: wrap it in "
            "lsgm_jax.solvers.method.Method, which says what it integrates and costs"
        )
    if (refusal := method.refuse(make("process"))) is not None:
        raise ConfigError(f"config.solver: {refusal}")
    return make("sampling", method=method, steps=make("steps"))
