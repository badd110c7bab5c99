"""Latent diffusion: a score-based model of a first stage's latents (Rombach et al. 2022).

The first stage is trained before, and stays as it is. What describes its latents is an `SGM` like any other: process,
objective and solvers do not know that their data are latents.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lsgm_jax.arrays import Images, Key, Latents, Scalar, State
from lsgm_jax.autoencoders.ldm import unit_scale
from lsgm_jax.models.conditional import Condition
from lsgm_jax.models.first_stage import FirstStage
from lsgm_jax.models.sgm import SGM
from lsgm_jax.models.tasks import Task
from lsgm_jax.nn.network import Aux, Params
from lsgm_jax.objectives.bound import Batch, Bound
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.processes.linear import Process
from lsgm_jax.solvers.integrate import SavedTimes
from lsgm_jax.solvers.sampler import Sampler, Solution
from lsgm_jax.solvers.trajectory import Trajectory

FROZEN = ("first_stage", "scale")  # of the parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class LDM:
    """First stage and prior. Parameters: {"first_stage", "scale"} and those of the prior.

    Attributes:
        prior: of the latents times `scale`.
        scale: of the latents; 0 for one over their standard deviation, which is found when the second stage begins.
        task: what the prior is told of an image that is to be completed; None if conditions are of another kind.
    """

    first_stage: FirstStage
    prior: SGM
    scale: float = 0.0
    task: Task | None = None

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.first_stage.image_shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of what the prior describes."""
        return self.first_stage.latent_shape

    @property
    def process(self) -> Process:
        """Of the prior."""
        return self.prior.process

    @property
    def labels(self) -> int:
        """None: images are grey levels or colours."""
        return 0

    def init(self, key: Key) -> Params:
        """Fresh parameters of first stage and prior."""
        k_first_stage, k_prior = jax.random.split(key)
        return self.init_prior(self.first_stage.init(k_first_stage), k_prior)

    def init_prior(self, first_stage: Params, key: Key) -> Params:
        """Fresh parameters of the prior, joined with those of a first stage."""
        frozen = {"first_stage": first_stage, "scale": jnp.full((), self.scale or 1.0, jnp.float32)}
        return frozen | self.prior.init(key)

    def adopt_scale(self, params: Params, x: Images, key: Key) -> Params:
        """The parameters with the scale that these images' latents ask for, if it is not given."""
        if self.scale:
            return params
        return params | {"scale": unit_scale(self.first_stage.encode(params["first_stage"], x, key))}

    def loss(self, params: Params, batch: Batch, key: Key) -> tuple[Scalar, Aux]:
        """The prior's loss on latents of images, mean over the batch; the first stage takes no gradient."""
        k_first_stage, k_prior = jax.random.split(key)
        params = params | jax.lax.stop_gradient(_frozen(params))
        loss, aux = self.prior.loss(params, self._latents(params, batch, k_first_stage), k_prior)
        # Nothing frozen moves, not even by the optimiser's weight decay.
        return loss, aux._replace(state=aux.state | _frozen(params))

    def bound(self, params: Params, batch: Batch, key: Key, stratum: Stratum = Stratum()) -> Bound:
        """Terms of a bound on -log p of the scaled latents, nats; what images lose in the first stage is not in it."""
        k_first_stage, k_prior = jax.random.split(key)
        return self.prior.bound(params, self._latents(params, batch, k_first_stage), k_prior, stratum)

    def sample(
        self, params: Params, key: Key, count: int, sampler: Sampler, condition: Condition = None
    ) -> tuple[Images, Solution]:
        """`count` images; the solution is in scaled latents."""
        told = self._told(params, condition)
        z_0, solution = self.prior.sample(params, key, count, sampler, told)
        return self.images(params, z_0), solution

    def decode(
        self, params: Params, z_1: State, key: Key, sampler: Sampler, condition: Condition = None
    ) -> tuple[Images, Solution]:
        """Images of given noise; the key is for what is drawn on the way."""
        z_0, solution = self.prior.decode(params, z_1, key, sampler, self._told(params, condition))
        return self.images(params, z_0), solution

    def decode_path(
        self,
        params: Params,
        z_1: State,
        key: Key,
        sampler: Sampler,
        times: SavedTimes,
        condition: Condition = None,
    ) -> tuple[Array, Trajectory]:
        """Images of the latents on the way, [times, batch, h, w, c]; the last are those of `decode`."""
        told = self._told(params, condition)
        positions, path = self.prior.decode_path(params, z_1, key, sampler, times, told)
        return jax.lax.map(lambda z: self.images(params, z), positions), path

    def encode(self, params: Params, batch: Batch, key: Key, sampler: Sampler) -> State:
        """The noise z_1 whose way back passes the images' latents."""
        k_first_stage, k_solve = jax.random.split(key)
        latents = self._latents(params, batch, k_first_stage)
        return self.prior.encode(params, latents, k_solve, sampler)

    def latents(self, params: Params, x: Images, key: Key | None) -> Latents:
        """Latents times `scale`: what the prior describes is a draw, what it is told their mode, without a key."""
        return params["scale"] * self.first_stage.encode(params["first_stage"], x, key)

    def images(self, params: Params, z_0: Latents) -> Images:
        """Of scaled latents."""
        return self.first_stage.decode(params["first_stage"], z_0 / params["scale"])

    def _latents(self, params: Params, batch: Batch, key: Key) -> Batch:
        """The batch as the prior sees it. What is to be completed is drawn here."""
        k_encode, k_task = jax.random.split(key)
        given = batch.condition
        if self.task is not None and given is None:
            given = self.task.draw(k_task, batch.x)
        return Batch(self.latents(params, batch.x, k_encode), self._told(params, given))

    def _told(self, params: Params, condition: Condition) -> Condition:
        """The condition as the prior takes it."""
        if self.task is None or condition is None:
            return condition
        encode = lambda x: self.latents(params, x, None)
        return self.task.maps(encode, condition, self.latent_shape)


def _frozen(params: Params) -> Params:
    return {name: params[name] for name in FROZEN}
