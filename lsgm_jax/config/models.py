"""The kinds of model: the sections of their configs, and what builds model and recipe from them."""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from lsgm_jax.arrays import Images, Params, PerSample
from lsgm_jax.autoencoders.discriminator import PatchDiscriminator
from lsgm_jax.autoencoders.likelihoods import shown
from lsgm_jax.autoencoders.perceptual import LPIPS
from lsgm_jax.conditioning.images import ConcatMaps, Task
from lsgm_jax.config.prior import Make, build_prior, refuse_shared_t, require_density
from lsgm_jax.config.registry import (
    AUTOENCODERS,
    CONDITIONINGS,
    DENSITIES,
    FIRST_STAGES,
    LAUNCHERS,
    LIKELIHOODS,
    NETWORKS,
    OPTIMISERS,
    PROCESSES,
    STEPS,
    TASKS,
    Section,
    Target,
    shared,
)
from lsgm_jax.config.specs import EvalSpec, LDMObjectiveSpec, ObjectiveSpec, PerceptualSpec, SGMObjectiveSpec
from lsgm_jax.data.points import PointSpec
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.errors import ConfigError, ConversionError, look_up
from lsgm_jax.interop.kinds import Converted, convert_ldm, convert_score_model
from lsgm_jax.interop.lpips_file import read_lpips
from lsgm_jax.models.first_stage import AdversarialTraining, Distance
from lsgm_jax.models.ldm import FROZEN, LDM
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.sgm import SGM
from lsgm_jax.models.vae import VAE
from lsgm_jax.nn.network import Compute, StatefulNetwork
from lsgm_jax.objectives.gan import GANLoss
from lsgm_jax.objectives.kl import KLSchedule
from lsgm_jax.solvers.likelihood import Divergence
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler
from lsgm_jax.training.optim import per_part
from lsgm_jax.training.penalty import Penalty
from lsgm_jax.training.recipes.ldm import LDMRecipe
from lsgm_jax.training.recipes.lsgm import LSGMRecipe
from lsgm_jax.training.recipes.recipe import Recipe
from lsgm_jax.training.recipes.sgm import SGMRecipe
from lsgm_jax.training.spec import LDMTrainSpec, TrainSpec, TwoStageSpec

MODULE = ("parent", "name")  # fields that every Linen module has
OPTIMISER = Section(OPTIMISERS)
IMAGE_DATA: dict[str, Target] = {"images": DataSpec}
SHARED = {
    "process": Section(PROCESSES),
    "score": Section(NETWORKS, given=("out_channels", "context_width", *MODULE)),
    "compute": Section(Compute),
    "conditioning": Section(CONDITIONINGS, default="none"),
    "density": Section(DENSITIES),
    "solver": Section({**METHODS}, default="Tsit5"),
    "steps": Section(STEPS, default="adaptive"),
    "sampling": Section(Sampler, given=("method", "steps")),
    "divergence": Section(Divergence),
    "eval": Section(EvalSpec),
    "parallel": Section(LAUNCHERS, default="data", given=("devices",)),
}
LSGM_SECTIONS = {
    "data": Section(IMAGE_DATA, default="images"),
    "autoencoder": Section(AUTOENCODERS, given=("image_shape", "out_channels", "compute", *MODULE)),
    "likelihood": Section(LIKELIHOODS, given=("levels",)),
    **SHARED,
    "objective": Section(ObjectiveSpec),
    "encoder_density": Section({"shared": shared, **DENSITIES}, default="shared"),
    "vae_stage": OPTIMISER,
    "vae_kl": Section(KLSchedule),
    "vae_penalty": Section(Penalty),
    "joint_vae": OPTIMISER,
    "joint_prior": OPTIMISER,
    "joint_kl": Section(KLSchedule),
    "joint_vae_penalty": Section(Penalty),
    "joint_prior_penalty": Section(Penalty),
    "train": Section(TwoStageSpec),
}
LDM_SECTIONS = {
    "data": Section(IMAGE_DATA, default="images"),
    "autoencoder": Section(FIRST_STAGES),
    "perceptual": Section(PerceptualSpec),
    "discriminator": Section(PatchDiscriminator, given=MODULE),
    "gan_loss": Section(GANLoss),
    "first_stage": OPTIMISER,
    **SHARED,
    "conditioning": Section({**CONDITIONINGS, **TASKS}, default="none"),
    "objective": Section(LDMObjectiveSpec),
    "optimiser": OPTIMISER,
    "train": Section(LDMTrainSpec),
}
SGM_SECTIONS = {
    "data": Section({**IMAGE_DATA, "points": PointSpec}, default="images"),
    **SHARED,
    "objective": Section(SGMObjectiveSpec),
    "optimiser": OPTIMISER,
    "penalty": Section(Penalty),
    "train": Section(TrainSpec),
}


class Kind(NamedTuple):
    """A kind of model.

    Attributes:
        sections: of its config.
        model: builds the model.
        recipe: builds its training, given the model and the run's seed.
        convert: converts an official checkpoint, given content, model, recipe, and whether to take the EMA.
    """

    sections: dict[str, Section]
    model: Callable[[Make], Any]
    recipe: Callable[[Make, Any, int], Recipe]
    convert: Callable[..., Converted]


def build_sgm(make: Make) -> SGM:
    """Builds a model of the data themselves."""
    data = make("data")
    return SGM(prior=build_prior(make, data.shape, make("conditioning")), bin_width=data.bin_width)


def sgm_recipe(make: Make, model: SGM, seed: int) -> SGMRecipe:
    """Builds the training of an SGM."""
    train = make("train")
    optimiser = _optimiser(make, "optimiser", train.steps)
    return SGMRecipe(model=model, train=train, optimiser=optimiser, penalty=make("penalty"))


def _optimiser(make: Make, section: str, steps: int) -> optax.GradientTransformation:
    """The optimiser of a section: a function of the number of steps, or an optax transformation as it is."""
    made: Any = make(section)
    return cast(optax.GradientTransformation, made(steps) if callable(made) else made)


def build_lsgm(make: Make) -> LSGM:
    """Builds a VAE and a score model of its latents."""
    vae, objective = _vae(make), make("objective")
    encoder_density = make("encoder_density")
    prior = build_prior(
        make,
        vae.latent_shape,
        make("conditioning"),
        encoder_density=encoder_density,
        encoder_uses_ema=objective.encoder_uses_ema,
        control_variate=objective.control_variate,
    )
    if encoder_density is None:
        refuse_shared_t(encoder_uses_ema=objective.encoder_uses_ema)
    else:
        require_density("encoder_density", prior.process, encoder_density)
    return LSGM(vae=vae, prior=prior)


def _vae(make: Make) -> VAE:
    data = make("data")
    likelihood = make("likelihood", levels=data.levels)
    try:
        # On shapes alone: a likelihood may refuse images that it does not fit.
        features = likelihood.channels(data.image_shape[-1])
        shapes = [(1, *data.image_shape[:-1], channels) for channels in (features, data.image_shape[-1])]
        jax.eval_shape(likelihood.log_prob, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    except ValueError as error:
        raise ConfigError(f"config.likelihood: {error}") from error
    seen = jax.eval_shape(lambda: shown(likelihood, jnp.zeros((1, *data.image_shape)))).shape[1:]
    backbone = make("autoencoder", image_shape=seen, out_channels=features, compute=make("compute"))
    return VAE(
        image_shape=data.image_shape,
        latent_shape=backbone.latent_shape,
        backbone=backbone,
        likelihood=likelihood,
    )


def lsgm_recipe(make: Make, model: LSGM, seed: int) -> LSGMRecipe:
    """Builds the training of an LSGM."""
    train = make("train")
    vae = optax.set_to_zero() if train.freeze_vae else _optimiser(make, "joint_vae", train.steps)
    return LSGMRecipe(
        model=model,
        train=train,
        vae_optimiser=_optimiser(make, "vae_stage", train.vae_steps),
        vae_kl=make("vae_kl"),
        vae_penalty=make("vae_penalty"),
        optimiser=per_part({"vae": vae}, _optimiser(make, "joint_prior", train.steps)),
        kl=make("joint_kl"),
        penalties={"vae": make("joint_vae_penalty"), "prior": make("joint_prior_penalty")},
    )


def build_ldm(make: Make) -> LDM:
    """Builds a first stage and a score model of its latents."""
    conditioning, scale = make("conditioning"), make("objective").latent_scale
    image_shape = make("data").image_shape
    try:
        first_stage = make("autoencoder").first_stage(image_shape, make("compute"))
    except ValueError as error:
        raise ConfigError(f"config.autoencoder: {error}") from error
    shape, task = first_stage.latent_shape, None
    if isinstance(conditioning, Task):
        channels = conditioning.channels(shape[-1], image_shape[-1])
        task, conditioning = conditioning, ConcatMaps(shape=(*shape[:2], channels))
    prior = build_prior(make, shape, conditioning)
    return LDM(first_stage=first_stage, prior=prior, scale=scale, task=task)


def ldm_recipe(make: Make, model: LDM, seed: int) -> LDMRecipe:
    """Builds the training of an LDM."""
    train, perceptual = make("train"), make("perceptual")
    first_stage = _optimiser(make, "first_stage", train.first_stage_steps)
    frozen: dict[str, optax.GradientTransformation] = dict.fromkeys(FROZEN, optax.set_to_zero())
    return LDMRecipe(
        model=model,
        train=train,
        adversarial=AdversarialTraining(
            first_stage=model.first_stage,
            discriminator=StatefulNetwork(make("discriminator"), make("compute")),
            criterion=make("autoencoder").criterion,
            gan_loss=make("gan_loss"),
            perceptual=_perceptual(perceptual),
            perceptual_weight=perceptual.weight,
        ),
        first_stage_optimiser=per_part({"discriminator": first_stage}, first_stage),
        optimiser=per_part(frozen, _optimiser(make, "optimiser", train.steps)),
        seed=seed,
    )


def _perceptual(spec: PerceptualSpec) -> Distance | None:
    """The distance. Its weights are read at the first use: a trained model needs no file.

    They are constants of the compiled step, 59 MB of them: on a CPU that costs a second of compilation, and
    nothing in a step.
    """
    if not spec.weights or not spec.weight:
        return None

    @functools.cache
    def variables() -> Params:
        try:
            return read_lpips(os.path.expanduser(spec.weights))
        except ConversionError as error:
            raise ConfigError(f"config.perceptual.weights: {error}") from error

    def distance(x: Images, x_hat: Images) -> PerSample:
        return cast(PerSample, LPIPS().apply(variables(), x, x_hat))

    return distance


# By the field `model` of a config. Adding a kind is one line.
MODELS: dict[str, Kind] = {
    "lsgm": Kind(LSGM_SECTIONS, build_lsgm, lsgm_recipe, convert_score_model),
    "ldm": Kind(LDM_SECTIONS, build_ldm, ldm_recipe, convert_ldm),
    "sgm": Kind(SGM_SECTIONS, build_sgm, sgm_recipe, convert_score_model),
}


def sections(model: str) -> dict[str, Section]:
    """Returns the sections of the config of a kind of model.

    Raises:
        ConfigError: if there is no such kind.
    """
    return look_up(MODELS, model, "model").sections
