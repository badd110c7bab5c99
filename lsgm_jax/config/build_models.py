"""Config -> models."""

from lsgm_jax.config.build_autoencoders import build_first_stage, build_vae
from lsgm_jax.config.build_prior import (
    build_fixed_part,
    build_prior,
    build_score_net,
    build_weighting,
    check_density,
)
from lsgm_jax.config.registry import SPREADS, Config
from lsgm_jax.config.section import build
from lsgm_jax.config.specs import ObjectiveSpec
from lsgm_jax.errors import ConfigError, look_up
from lsgm_jax.models.conditional import BesideLatents
from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.model import Model
from lsgm_jax.models.sgm import SGM
from lsgm_jax.models.tasks import Task
from lsgm_jax.objectives.elbo import Objective


def build_model(config: Config) -> Model:
    """The model that `config.model` names."""
    if config.sampling.guidance != 1.0 and config.conditioning.name == "none":
        raise ConfigError(
            f"config.sampling.guidance={config.sampling.guidance} is for a model of conditions: "
            "this one has config.conditioning.name='none'"
        )
    return {"lsgm": build_lsgm, "sgm": build_sgm, "ldm": build_ldm}[config.model](config)


def build_lsgm(config: Config) -> LSGM:
    """The whole model."""
    vae, spec = build_vae(config), build("objective", config)
    score_net = build_score_net(config, vae.latent_shape)
    process, density = build("process", config), build("density", config)
    encoder_density = build("encoder_density", config)
    check_density("density", process, density)
    if encoder_density is not None:
        check_density("encoder_density", process, encoder_density)
    if encoder_density is None:
        _refuse_shared_times(config, spec)
    return LSGM(
        vae=vae,
        process=process,
        score_net=score_net,
        objective=Objective(
            prior_weighting=build_weighting(process, spec.weighting),
            density=density,
            encoder_density=encoder_density,
            encoder_uses_ema=spec.encoder_uses_ema,
            spread=look_up(SPREADS, spec.spread, "objective.spread"),
            control_variate=spec.control_variate,
        ),
        fixed_part=build_fixed_part(process, spec.mixed_score),
        mixing_logit_init=spec.mixing_logit_init,
        inactive_kl=spec.inactive_kl,
        conditioning=build("conditioning", config),
    )


def _refuse_shared_times(config: Config, spec: ObjectiveSpec) -> None:
    """What one pass for prior and encoder cannot do."""
    asked = {
        "config.joint_kl.balanced": config.joint_kl.balanced,
        "config.objective.encoder_uses_ema": spec.encoder_uses_ema,
    }
    for key, value in asked.items():
        if value:
            raise ConfigError(
                f"{key}=True needs times of the encoder's own: set config.encoder_density.name, to 'optimal' say"
            )


def build_sgm(config: Config) -> SGM:
    """A model of the data itself."""
    data = build("data", config)
    return build_prior(config, data.shape, build("conditioning", config), data.bin_width)


def build_ldm(config: Config) -> LDM:
    """First stage and prior."""
    first_stage, condition = build_first_stage(config), build("conditioning", config)
    shape, scale = first_stage.latent_shape, config.objective.latent_scale
    if not isinstance(condition, Task):
        return LDM(first_stage=first_stage, prior=build_prior(config, shape, condition), scale=scale)
    channels = condition.channels(shape[-1], first_stage.image_shape[-1])
    beside = BesideLatents(shape=(*shape[:2], channels))
    return LDM(first_stage=first_stage, prior=build_prior(config, shape, beside), scale=scale, task=condition)
