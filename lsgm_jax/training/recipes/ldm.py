"""The training of an LDM: its first stage against a discriminator, then the prior of its frozen latents."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from lsgm_jax.arrays import Images, Key, Params, Scalar, sum_per_sample
from lsgm_jax.errors import DataError
from lsgm_jax.models.first_stage import AdversarialTraining, psnr
from lsgm_jax.models.ldm import FROZEN, LDM
from lsgm_jax.nn.network import Aux
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.training.devices import shared_count
from lsgm_jax.training.logs import warn
from lsgm_jax.training.recipes.common import (
    PREVIEW,
    Named,
    bound_terms,
    ema,
    first_rows,
    preview,
    sample_preview,
    validator,
)
from lsgm_jax.training.recipes.recipe import Data, Donor
from lsgm_jax.training.spec import LDMTrainSpec
from lsgm_jax.training.stage import Stage
from lsgm_jax.training.step import EMA, Context

SAME = ("data.image_shape=", "data.levels=", "autoencoder.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LDMRecipe:
    """Trains an LDM; the stages "first_stage" and "prior".

    Attributes:
        adversarial: the loss of the first stage.
        first_stage_optimiser: of generator and discriminator.
        optimiser: of the prior.
        seed: of the draw of latents that their scale is found from.
    """

    model: LDM
    train: LDMTrainSpec
    adversarial: AdversarialTraining
    first_stage_optimiser: optax.GradientTransformation
    optimiser: optax.GradientTransformation
    seed: int

    @property
    def donor(self) -> Donor | None:
        """Another run whose first stage is taken."""
        folder = self.train.first_stage_from
        return (
            Donor("first_stage_from", folder, "first_stage", SAME, lambda params: params) if folder else None
        )

    def stages(self, data: Data) -> list[Stage]:
        """Returns the stages in order, without the first one if the first stage is that of another run."""
        prior = self._prior_stage(data)
        return [prior] if self.donor else [self._first_stage(data), prior]

    def steps(self, stage: str) -> int:
        """Returns the number of steps of a stage."""
        return self.train.first_stage_steps if stage == "first_stage" else self.train.steps

    def init(self, stage: str) -> Callable[[Key], Params]:
        """Returns a function that makes fresh parameters like those that a stage leaves."""
        return self.adversarial.init if stage == "first_stage" else self.model.init

    def _first_stage(self, data: Data) -> Stage:
        train, adversarial = self.train, self.adversarial
        autoencode = self.model.first_stage.autoencode

        def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
            return adversarial.loss(params, batch, context.key, context.step)

        def terms(params: Params, batch: Batch, key: Key, stratum: Stratum) -> Named:
            return _reconstruction_terms(adversarial, params["first_stage"], batch.x, key)

        def images(params: Params, key: Key) -> np.ndarray:
            return first_rows(data.validation.x, shared_count(PREVIEW // 2))

        def pairs(params: Params, x: Images, key: Key) -> Array:
            """Images, each followed by its reconstruction."""
            x_hat = autoencode(params["first_stage"], x, key).x_hat
            return jnp.stack([x, x_hat], axis=1).reshape(-1, *x.shape[1:])

        def adapt(params: Params) -> Params:
            """Returns the parameters; warns where training begins."""
            if adversarial.perceptual is None and adversarial.perceptual_weight:
                warn(
                    "no perceptual weights, config.perceptual.weights: "
                    "the first stage's error is in absolute values alone (docs/howto/ldm.md)"
                )
            return params

        decay = train.ema_decay if train.ema_first_stage else 0.0
        return Stage(
            name="first_stage",
            init=lambda key, before: adversarial.init(key),
            adapt=adapt,
            loss=loss,
            optimiser=self.first_stage_optimiser,
            ema=EMA(decay, train.ema_warmup, skip=("discriminator",)),
            steps=train.first_stage_steps,
            validate=validator(terms, data, draws=1),
            judged_by="reconstruction",
            draw=preview(images, pairs, PREVIEW),
        )

    def _prior_stage(self, data: Data) -> Stage:
        model = self.model

        def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
            return model.loss(params, batch, context.key)

        def init(key: Key, before: Params | None) -> Params:
            assert before is not None
            return model.init_prior(before["first_stage"], key)

        def adapt(params: Params) -> Params:
            """Finds the scale of the latents from the first batch of images in their stored order."""
            if data.training is None:
                return params
            x = data.training.batch(np.arange(min(len(data.training), data.batch_size)))["x"]
            scaled = jax.jit(model.adopt_scale)(params, jnp.asarray(x), jax.random.key(self.seed))
            if not np.isfinite(scaled["scale"]):
                raise DataError(
                    f"the latents of the first {len(x)} images do not vary, so they have no scale: "
                    "set config.objective.latent_scale=1.0, or look at the images"
                )
            return scaled

        return Stage(
            name="prior",
            init=init,
            adapt=adapt,
            loss=loss,
            optimiser=self.optimiser,
            ema=ema(self.train, skip=FROZEN),
            steps=self.train.steps,
            validate=validator(bound_terms(model.latent_bound), data),
            shown={"loss": "loss"},  # the bound is of latents, not of data
            draw=sample_preview(model, data),
        )


def _reconstruction_terms(training: AdversarialTraining, params: Params, x: Images, key: Key) -> Named:
    """The error of every image: mean over values with the perceptual distance, mean absolute error, and PSNR in dB."""
    x_hat = training.first_stage.autoencode(params, x, key).x_hat
    mean = lambda values: sum_per_sample(values) / x[0].size
    return {
        "reconstruction": mean(training.error(x, x_hat)),
        "absolute_error": mean(jnp.abs(x - x_hat)),
        "psnr": psnr(x, x_hat),
    }
