"""The training of an LSGM: its VAE, then VAE and prior together; or the prior alone on a frozen VAE."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lsgm_jax.arrays import Key, Params, Scalar, draw_array
from lsgm_jax.data.pipeline import Samples, padded_batches
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.vae import VAE
from lsgm_jax.nn.network import Aux
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.kl import KLSchedule
from lsgm_jax.training.devices import OverDevices, shared_count
from lsgm_jax.training.penalty import Penalty
from lsgm_jax.training.recipes.common import (
    PREVIEW,
    bound_terms,
    ema,
    penalised,
    preview,
    sample_preview,
    vae_terms,
    validator,
)
from lsgm_jax.training.recipes.recipe import Data, Donor
from lsgm_jax.training.spec import TwoStageSpec
from lsgm_jax.training.stage import Stage
from lsgm_jax.training.step import Context

INACTIVE_IMAGES = 4096  # for the KL divergence of each channel
SAME = ("data.image_shape=", "data.levels=", "autoencoder.", "likelihood.")

PerChannel = Float[Array, "batch channels"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSGMRecipe:
    """Trains an LSGM; the stages "vae" and "joint".

    Attributes:
        vae_optimiser, vae_kl, vae_penalty: of the first stage.
        optimiser: of the second stage, for all parameters.
        kl, penalties: of the second stage; penalties by network, "vae" and "prior".
    """

    model: LSGM
    train: TwoStageSpec
    vae_optimiser: optax.GradientTransformation
    vae_kl: KLSchedule
    vae_penalty: Penalty
    optimiser: optax.GradientTransformation
    kl: KLSchedule
    penalties: dict[str, Penalty]

    @property
    def donor(self) -> Donor | None:
        """Another run whose VAE is taken."""
        folder = self.train.vae_from
        return Donor("vae_from", folder, "vae", SAME, lambda params: params["vae"]) if folder else None

    def stages(self, data: Data) -> list[Stage]:
        """Returns the stages in order, without the first one if the VAE is that of another run."""
        second = self._frozen_stage(data) if self.train.freeze_vae else self._joint_stage(data)
        return [second] if self.donor else [self._vae_stage(data), second]

    def steps(self, stage: str) -> int:
        """Returns the number of steps of a stage."""
        return self.train.vae_steps if stage == "vae" else self.train.steps

    def init(self, stage: str) -> Callable[[Key], Params]:
        """Returns a function that makes fresh parameters like those that a stage leaves."""
        return self.model.vae.init if stage == "vae" else self.model.init

    def _vae_stage(self, data: Data) -> Stage:
        model, vae, kl, train = self.model, self.model.vae, self.vae_kl, self.train

        def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
            return vae.loss(params, batch, context.key, kl(context.step))

        def noise(params: Params, key: Key) -> Array:
            return draw_array(jax.random.normal, key, (shared_count(PREVIEW), *model.latent_shape))

        return Stage(
            name="vae",
            init=lambda key, before: vae.init(key),
            optimiser=self.vae_optimiser,
            ema=ema(train, decay=train.ema_decay if train.ema_vae else 0.0),
            steps=train.vae_steps,
            validate=validator(vae_terms(vae.bound), data),
            draw=preview(noise, vae.decode, PREVIEW, model.labels),
            **penalised(loss, {"vae": self.vae_penalty}, model.data_shape),
        )

    def _joint_stage(self, data: Data) -> Stage:
        model, kl = self.model, self.kl

        def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
            return model.loss(params, batch, context.key, kl(context.step), context.ema_params)

        return Stage(
            ema=ema(self.train, skip=() if self.train.ema_vae else ("vae",)),
            **self._second_stage(data),
            **penalised(loss, self.penalties, model.data_shape),
        )

    def _frozen_stage(self, data: Data) -> Stage:
        """The second stage on a frozen VAE: the published third stage, and two-stage training."""

        def loss(params: Params, batch: Batch, context: Context) -> tuple[Scalar, Aux]:
            return self.model.prior_loss(params, batch, context.key)

        return Stage(
            ema=ema(self.train, skip=("vae",)),
            **self._second_stage(data),
            **penalised(loss, {"prior": self.penalties["prior"]}, self.model.data_shape),
        )

    def _second_stage(self, data: Data) -> dict[str, Any]:
        """The fields of the second stage that do not depend on whether it trains the VAE."""
        model = self.model

        def adapt(params: Params) -> Params:
            if not model.prior.inactive_kl or data.training is None:
                return params
            kl = _kl_per_channel(model.vae, params["vae"], data.training, data.batch_size)
            return jax.jit(model.prior.freeze_inactive)(params, kl.astype(np.float32))

        return dict(
            name="joint",
            init=lambda key, before: {"vae": before, **model.prior.init(key)},
            adapt=adapt,
            optimiser=self.optimiser,
            steps=self.train.steps,
            validate=validator(bound_terms(model.bound), data),
            draw=sample_preview(model, data),
        )


def _kl_per_channel(vae: VAE, params: Params, training: Samples, batch_size: int) -> np.ndarray:
    """KL(q || N(0, I)) of each channel of z_0, nats, mean over training data."""

    @OverDevices
    def held(params: Params, batch: Batch, key: Key) -> PerChannel:
        latent = vae.autoencode(params, batch.x, key, train=False).latent
        kl = latent.gaussian_cross_entropy - latent.entropy
        return jnp.sum(kl, axis=tuple(range(1, kl.ndim - 1)))

    count = min(len(training), INACTIVE_IMAGES)
    x = training.batch(np.arange(count))["x"]
    total = np.zeros(vae.latent_shape[-1])
    for number, (rows, real) in enumerate(padded_batches(x, batch_size)):
        k_batch = jax.random.fold_in(jax.random.key(0), number)
        total += np.asarray(held(params, Batch(jnp.asarray(rows)), k_batch)[:real], np.float64).sum(axis=0)
    return total / count
