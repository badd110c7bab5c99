"""Config -> objects."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from lsgm_jax.arrays import Images, PerSample
from lsgm_jax.autoencoders.bottlenecks import Bottleneck, NarrowNormal, Rounding
from lsgm_jax.autoencoders.conv import ConvDecoder, ConvEncoder
from lsgm_jax.autoencoders.ldm import Decoder, Encoder
from lsgm_jax.autoencoders.likelihoods import Likelihood, shown
from lsgm_jax.autoencoders.perceptual import LPIPS
from lsgm_jax.autoencoders.quantiser import Quantiser
from lsgm_jax.diffusions.cld import CLD, velocity_eps
from lsgm_jax.diffusions.linear import Process, sigma
from lsgm_jax.diffusions.predictions import PREDICTIONS, Prediction, eps, require_one_coordinate, v
from lsgm_jax.interop.errors import ConversionError
from lsgm_jax.interop.lpips_file import read_lpips
from lsgm_jax.models.backbones import Flat, Hierarchical
from lsgm_jax.models.conditional import BesideLatents, Conditioning
from lsgm_jax.models.first_stage import AdversarialTraining, Distance, FirstStage
from lsgm_jax.models.ldm import FROZEN, LDM
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.model import Model
from lsgm_jax.models.network import Network, Params, StatefulNetwork
from lsgm_jax.models.sgm import SGM
from lsgm_jax.models.tasks import Task
from lsgm_jax.models.vae import VAE
from lsgm_jax.objectives.adversarial import KLFirstStage, VQFirstStage
from lsgm_jax.objectives.elbo import Objective
from lsgm_jax.objectives.times import TimeDensity
from lsgm_jax.objectives.weights import Weighting
from lsgm_jax.schema import (
    FIXED_PARTS,
    MATCHINGS,
    NORMS,
    SPREADS,
    WEIGHTINGS,
    Config,
    ConfigError,
    KLSpec,
    ObjectiveSpec,
    PerceptualSpec,
    SGMObjectiveSpec,
    VQSpec,
    look_up,
    schema,
    section_target,
)
from lsgm_jax.scores.parameterise import FixedPart
from lsgm_jax.scores.unet import UNet
from lsgm_jax.solvers.sampler import Sampler
from lsgm_jax.training.optim import per_part


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
    seen = jax.eval_shape(lambda: shown(likelihood, jnp.zeros((1, *image_shape))))
    make = _hierarchical if config.autoencoder.name == "nvae" else _flat
    backbone = make(config, seen.shape[1:], features)
    return VAE(
        image_shape=image_shape, latent_shape=backbone.latent_shape, backbone=backbone, likelihood=likelihood
    )


def _flat(config: Config, image_shape: tuple[int, int, int], features: int) -> Flat:
    spec, compute = build("autoencoder", config), build("compute", config)
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
        encoder=Network(encoder, compute),
        decoder=Network(decoder, compute),
    )


def _hierarchical(config: Config, image_shape: tuple[int, int, int], features: int) -> Hierarchical:
    net = build("autoencoder", config, out_channels=features)
    try:
        return Hierarchical(image_shape=image_shape, net=net, compute=build("compute", config))
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
    process, density = build("process", config), build("density", config)
    encoder_density = build("encoder_density", config)
    _check_density("density", process, density)
    if encoder_density is not None:
        _check_density("encoder_density", process, encoder_density)
    if encoder_density is None:
        _refuse_shared_times(config, spec)
    return LSGM(
        vae=vae,
        process=process,
        score_net=score_net,
        objective=Objective(
            prior_weighting=_weighting(process, spec.weighting),
            density=density,
            encoder_density=encoder_density,
            encoder_meets_average=spec.encoder_meets_average,
            spread=look_up(SPREADS, spec.spread, "objective.spread"),
            control_variate=spec.control_variate,
        ),
        fixed_part=_fixed_part(process, spec.mixed_score),
        mixing_logit_init=spec.mixing_logit_init,
        inactive_kl=spec.inactive_kl,
        conditioning=build("conditioning", config),
    )


def _refuse_shared_times(config: Config, spec: ObjectiveSpec) -> None:
    """What one pass for prior and encoder cannot do."""
    asked = {
        "config.joint_kl.balanced": config.joint_kl.balanced,
        "config.objective.encoder_meets_average": spec.encoder_meets_average,
    }
    for key, value in asked.items():
        if value:
            raise ConfigError(
                f"{key}=True needs times of the encoder's own: set config.encoder_density.name, to 'optimal' say"
            )


def build_sgm(config: Config) -> SGM:
    """A model of the data itself."""
    data = build("data", config)
    return _score_model(config, data.shape, build("conditioning", config), data.bin_width)


def build_ldm(config: Config) -> LDM:
    """First stage and prior."""
    first_stage, condition = build_first_stage(config), build("conditioning", config)
    shape, scale = first_stage.latent_shape, config.objective.latent_scale
    if not isinstance(condition, Task):
        return LDM(first_stage=first_stage, prior=_score_model(config, shape, condition), scale=scale)
    channels = condition.channels(shape[-1], first_stage.image_shape[-1])
    beside = BesideLatents(shape=(*shape[:2], channels))
    return LDM(
        first_stage=first_stage, prior=_score_model(config, shape, beside), scale=scale, task=condition
    )


def _score_model(
    config: Config, shape: tuple[int, ...], conditioning: Conditioning, bin_width: float = 0.0
) -> SGM:
    spec = build("objective", config)
    process, density = build("process", config), build("density", config)
    _check_density("density", process, density)
    return SGM(
        data_shape=shape,
        process=process,
        score_net=build_score_net(config, shape),
        objective=Objective(
            prior_weighting=_weighting(process, spec.weighting),
            density=density,
            spread=look_up(SPREADS, spec.spread, "objective.spread"),
            norm=look_up(NORMS, spec.norm, "objective.norm"),
        ),
        bin_width=bin_width,
        fixed_part=_fixed_part(process, spec.mixed_score),
        start=_known_start(process, spec),
        conditioning=conditioning,
        prediction=_prediction(process, spec),
    )


def build_first_stage(config: Config) -> FirstStage:
    """An LDM's autoencoder."""
    spec, compute = build("autoencoder", config), build("compute", config)
    image_shape = build("data", config).image_shape
    height, width, channels = image_shape
    if height % spec.factor or width % spec.factor:
        raise ConfigError(
            f"config.data.image_shape={image_shape} cannot be halved {len(spec.channel_mult) - 1} times: "
            "resize the images or give config.autoencoder.channel_mult fewer entries"
        )
    bottleneck = _bottleneck(spec)
    encoder = Encoder(spec, trunk_channels=bottleneck.features, features=bottleneck.features)
    decoder = Decoder(spec, trunk_channels=spec.latent_channels, out_channels=channels)
    return FirstStage(
        image_shape=image_shape,
        latent_shape=(height // spec.factor, width // spec.factor, spec.latent_channels),
        encoder=Network(encoder, compute),
        decoder=Network(decoder, compute),
        bottleneck=bottleneck,
    )


def _bottleneck(spec: KLSpec | VQSpec) -> Bottleneck:
    if isinstance(spec, KLSpec):
        return NarrowNormal(latent_channels=spec.latent_channels)
    try:
        quantiser = Quantiser(
            entries=spec.entries, width=spec.latent_channels, beta=spec.beta, legacy=spec.legacy
        )
    except ValueError as error:
        raise ConfigError(f"config.autoencoder: {error}") from error
    return Rounding(quantiser=quantiser)


def build_adversarial_training(config: Config, first_stage: FirstStage) -> AdversarialTraining:
    """What trains an LDM's first stage."""
    spec, perceptual = build("autoencoder", config), build("perceptual", config)
    if isinstance(spec, KLSpec):
        criterion = KLFirstStage(kl_weight=spec.kl_weight)
    else:
        criterion = VQFirstStage(codebook_weight=spec.codebook_weight)
    return AdversarialTraining(
        first_stage=first_stage,
        discriminator=StatefulNetwork(build("discriminator", config), build("compute", config)),
        criterion=criterion,
        game=build("game", config),
        perceptual=_perceptual(perceptual),
        perceptual_weight=perceptual.weight,
    )


def _perceptual(spec: PerceptualSpec) -> Distance | None:
    """The distance, whose weights are read when it is first used: what is trained already does without the file.

    They are constants of the compiled step, 59 MB of them: on a CPU that costs a second when it is compiled, and
    nothing in a step.
    """
    if not spec.weights or not spec.weight:
        return None

    @functools.cache
    def variables() -> Params:
        try:
            return read_lpips(spec.weights)
        except ConversionError as error:
            raise ConfigError(f"config.perceptual.weights: {error}") from error

    def distance(x: Images, x_hat: Images) -> PerSample:
        return cast(PerSample, LPIPS().apply(variables(), x, x_hat))

    return distance


def _weighting(process: Process, name: str) -> Weighting:
    weighting = look_up(WEIGHTINGS, name, "objective.weighting")
    _try("objective.weighting", lambda: weighting(process, jnp.ones(1)))
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
        _try("objective.prediction", lambda: require_one_coordinate(process))
    return prediction


def _try(key: str, function: Callable[[], Any]) -> None:
    """Refuses what a function, of shapes alone, refuses."""
    try:
        jax.eval_shape(function)
    except ValueError as error:
        raise ConfigError(f"config.{key}: {error}") from error


def _fixed_part(process: Process, name: str) -> FixedPart | None:
    part = look_up(FIXED_PARTS, name, "objective.mixed_score")
    if part is velocity_eps and not isinstance(process, CLD):
        raise ConfigError(
            f"config.objective.mixed_score={name!r} is for the process cld, not {type(process).__name__}: use 'normal'"
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


def build_model(config: Config) -> Model:
    """The model that `config.model` names."""
    if config.sampling.guidance != 1.0 and config.conditioning.name == "none":
        raise ConfigError(
            f"config.sampling.guidance={config.sampling.guidance} is for a model of conditions: "
            "this one has config.conditioning.name='none'"
        )
    return {"lsgm": build_lsgm, "sgm": build_sgm, "ldm": build_ldm}[config.model](config)


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


def _check_density(section: str, process: Process, density: TimeDensity) -> None:
    _try(section, lambda: density.density(process, jnp.ones(1)))
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
    """The optimiser of a stage: "vae" or "joint" of an LSGM, "score" of an SGM, "first_stage" or "prior" of an LDM."""
    steps = config.train.steps
    match stage:
        case "vae":
            return build("vae_stage", config, steps=config.train.vae_steps)
        case "score":
            return build("optimiser", config, steps=steps)
        case "first_stage":
            player = build("first_stage", config, steps=config.train.first_stage_steps)
            return per_part({"discriminator": player}, player)
        case "prior":
            still = optax.set_to_zero()
            return per_part(dict.fromkeys(FROZEN, still), build("optimiser", config, steps=steps))
    prior = build("joint_prior", config, steps=steps)
    vae = optax.set_to_zero() if config.train.freeze_vae else build("joint_vae", config, steps=steps)
    return per_part({"vae": vae}, prior)
