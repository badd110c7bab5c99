"""Config -> how a model is sampled and trained."""

import optax

from lsgm_jax.config.registry import Config
from lsgm_jax.config.section import build
from lsgm_jax.errors import ConfigError
from lsgm_jax.models.ldm import FROZEN
from lsgm_jax.solvers.sampler import Sampler
from lsgm_jax.training.optim import per_part


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
    """The optimiser of a stage: "vae" or "joint" of an LSGM, "score" of an SGM, "first_stage" or "prior" of an LDM."""
    steps = config.train.steps
    match stage:
        case "vae":
            return build("vae_stage", config)(config.train.vae_steps)
        case "score":
            return build("optimiser", config)(steps)
        case "first_stage":
            player = build("first_stage", config)(config.train.first_stage_steps)
            return per_part({"discriminator": player}, player)
        case "prior":
            still = optax.set_to_zero()
            return per_part(dict.fromkeys(FROZEN, still), build("optimiser", config)(steps))
    prior = build("joint_prior", config)(steps)
    vae = optax.set_to_zero() if config.train.freeze_vae else build("joint_vae", config)(steps)
    return per_part({"vae": vae}, prior)
