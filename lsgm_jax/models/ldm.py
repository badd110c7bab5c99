"""LDM: latent diffusion, a score model of the latents of a frozen first stage (Rombach et al. 2022)."""

import dataclasses

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Condition, Images, Key, Latents, Params, Scalar
from lsgm_jax.autoencoders.ldm import unit_scale
from lsgm_jax.conditioning.images import Task
from lsgm_jax.models.first_stage import FirstStage
from lsgm_jax.models.protocol import Model
from lsgm_jax.models.score_model import ScoreModel
from lsgm_jax.nn.network import Aux
from lsgm_jax.objectives.bound import Batch, Bound
from lsgm_jax.objectives.time_densities import Stratum

FROZEN = ("first_stage", "scale")  # of the parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class LDM(Model):
    """A frozen first stage and a score model of its latents. Parameters: {"first_stage", "scale"} and the prior's.

    It gives images no likelihood: `latent_bound` is a bound for the latents.

    Attributes:
        prior: of the latents times `scale`.
        scale: of the latents; 0 for one over their standard deviation, which is found when the second stage begins.
        task: what the prior restores, given a part of an image; None if conditions are of another kind.
    """

    first_stage: FirstStage
    prior: ScoreModel
    scale: float = 0.0
    task: Task | None = None
    stages = ("first_stage", "prior")
    posterior = bound = ode_bound = None  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    encoder_draws, decoder_draws = True, False

    @property
    def autoencoder(self) -> FirstStage:
        """The first stage."""
        return self.first_stage

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.first_stage.image_shape

    def init(self, key: Key) -> Params:
        """Returns fresh parameters of first stage and prior."""
        k_first_stage, k_prior = jax.random.split(key)
        return self.init_prior(self.first_stage.init(k_first_stage), k_prior)

    def init_prior(self, first_stage: Params, key: Key) -> Params:
        """Returns fresh parameters of the prior, joined with those of a first stage."""
        frozen = {"first_stage": first_stage, "scale": jnp.full((), self.scale or 1.0, jnp.float32)}
        return frozen | self.prior.init(key)

    def adopt_scale(self, params: Params, x: Images, key: Key) -> Params:
        """Returns the parameters with one over the standard deviation of these latents, if no scale is given."""
        if self.scale:
            return params
        return params | {"scale": unit_scale(self.first_stage.encode(params["first_stage"], x, key))}

    def loss(self, params: Params, batch: Batch, key: Key) -> tuple[Scalar, Aux]:
        """Computes the prior's loss on latents of images, mean over the batch; the first stage takes no gradient."""
        k_first_stage, k_prior = jax.random.split(key)
        params = params | jax.lax.stop_gradient(_frozen(params))
        latents = self._encode(params, batch, k_first_stage, train=True)
        loss, aux = self.prior.loss(params, latents, k_prior)
        # What is frozen is state: it is frozen for the weight decay of an optimiser, too.
        return loss, aux._replace(state=aux.state | _frozen(params))

    def latent_bound(self, params: Params, batch: Batch, key: Key, stratum: Stratum = Stratum()) -> Bound:
        """Computes a bound on -log p of the scaled latents, nats; it leaves the error of the first stage aside."""
        k_first_stage, k_prior = jax.random.split(key)
        # As in `SGM.bound`, whose other half dequantises; latents are not dequantised.
        _, k_draw = jax.random.split(k_prior)
        return self.prior.bound(params, self.encode_data(params, batch, k_first_stage), k_draw, stratum)

    def encode_data(self, params: Params, batch: Batch, key: Key) -> Batch:
        """Draws scaled latents. The condition of a task is drawn here if the batch has none."""
        return self._encode(params, batch, key, train=False)

    def encode_known(self, params: Params, x: Images, key: Key) -> Latents:
        """Returns the mode of the scaled latents."""
        return self.latents(params, x, None)

    def encode_condition(self, params: Params, condition: Condition) -> Condition:
        """Returns the condition of a task as maps of the size of the latents; others as they are."""
        return self._condition(params, condition, train=False)

    def _encode(self, params: Params, batch: Batch, key: Key, *, train: bool) -> Batch:
        k_encode, k_task = jax.random.split(key)
        condition = batch.condition
        if self.task is not None and condition is None:
            condition = self.task.draw(k_task, batch.x)
        latents = self.latents(params, batch.x, k_encode, train=train)
        return Batch(latents, self._condition(params, condition, train=train))

    def _condition(self, params: Params, condition: Condition, *, train: bool) -> Condition:
        if self.task is None or condition is None:
            return condition
        encode = lambda x: self.latents(params, x, None, train=train)
        return self.task.maps(encode, condition, self.latent_shape)

    def latents(self, params: Params, x: Images, key: Key | None, *, train: bool = False) -> Latents:
        """Returns scaled latents of images: a draw, or the mode without a key."""
        return params["scale"] * self.first_stage.encode(params["first_stage"], x, key, train=train)

    def decode_latents(self, params: Params, z_0: Latents, key: Key) -> Images:
        """Returns the images of scaled latents."""
        return self.first_stage.decode(params["first_stage"], z_0 / params["scale"])


def _frozen(params: Params) -> Params:
    return {name: params[name] for name in FROZEN}
