"""What every model can do. Bounds and sampling stand here once, for all of them."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array

from lsgm_jax.arrays import Condition, Key, Latents, Params, Scalar, State, finite_per_sample
from lsgm_jax.conditioning.images import Task
from lsgm_jax.models.score_model import ScoreModel
from lsgm_jax.nn.network import Aux
from lsgm_jax.objectives.bound import Batch, Bound, ODEBound, Posterior
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.processes.linear import Process
from lsgm_jax.solvers.integrate import SavedTimes
from lsgm_jax.solvers.likelihood import RADEMACHER, Divergence
from lsgm_jax.solvers.sampler import Sampler, Solution, draw_noise
from lsgm_jax.solvers.trajectory import Trajectory


@runtime_checkable
class Autoencoder(Protocol):
    """Maps data to latents and back: the VAE of an LSGM, or the first stage of an LDM.

    A VAE is a generative model by itself, with a standard Gaussian prior: it has a `bound` and can `sample`. For a
    first stage both are None.
    """

    @property
    def bound(self) -> Callable[..., Bound] | None:
        """Computes the terms of the NELBO of a VAE, (params, batch, key) -> `Bound`; None for a first stage."""
        ...

    @property
    def sample(self) -> Callable[..., Latents] | None:
        """Draws samples of a VAE, (params, key, count) -> data; None for a first stage."""
        ...

    def autoencode(self, params: Params, x: Latents, key: Key, *, train: bool) -> tuple[Any, ...]:
        """Encodes data, draws latents and decodes them: returns the latents, the reconstruction, and more."""
        ...


@runtime_checkable
class Model(Protocol):
    """A score-based generative model: a `ScoreModel` on the data, or on the latents of an autoencoder.

    Its parameters are one dictionary: those of the prior, and those of the autoencoder under the name of its stage.

    Attributes:
        prior: the score model of the data, or of their latents.
        stages: names of the training stages, in order; the last one trains the model, an earlier one its autoencoder.
        task: what the prior restores (inpainting, super-resolution); None for other conditions.
        encoder_draws, decoder_draws: whether `encode_data` and `decode_latents` are random.
    """

    prior: ScoreModel
    stages: tuple[str, ...]
    task: Task | None = None
    encoder_draws: bool
    decoder_draws: bool

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The autoencoder; None if the prior models the data themselves."""
        ...

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one sample of the data."""
        ...

    @property
    def pixel_values(self) -> int:
        """The number of discrete values per sample that the bound is on; 0 for continuous data."""
        return 0

    @property
    def labels(self) -> int:
        """The number of labels that the values of the data stand for; 0 if they are quantities."""
        return 0

    def init(self, key: Key) -> Params:
        """Returns fresh parameters."""
        ...

    def loss(self, params: Params, batch: Batch, key: Key) -> tuple[Scalar, Aux]:
        """Computes the loss of the last stage, mean over the batch, and metrics in nats."""
        ...

    def posterior(self, params: Params, x: Latents, key: Key) -> Posterior:
        """Draws z_0 for data x, with the terms of the bound that come with it, without dropout."""
        ...

    def encode_data(self, params: Params, batch: Batch, key: Key) -> Batch:
        """Returns the data and their conditions as the prior models them: latents of images."""
        ...

    def encode_known(self, params: Params, x: Latents, key: Key) -> Latents:
        """Returns the latents of images of which a part is known, for inpainting without training."""
        ...

    def encode_condition(self, params: Params, condition: Condition) -> Condition:
        """Returns a condition as the prior takes it."""
        ...

    def decode_latents(self, params: Params, z_0: Latents, key: Key) -> Array:
        """Returns the data of latents: expected images, NHWC."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one sample of the prior."""
        return self.prior.shape

    def process(self, params: Params) -> Process:
        """Returns the forward process of the prior."""
        return self.prior.process_of(params)

    def bound(self, params: Params, batch: Batch, key: Key, stratum: Stratum = Stratum()) -> Bound:
        """Computes the terms of a bound on -log p(x), one draw of z_0, t and eps per sample, nats.

        `LDM` has None in place of this function and `ode_bound`: it gives images no likelihood.
        """
        k_posterior, k_draw = jax.random.split(key)
        posterior = self.posterior(params, batch.x, k_posterior)
        latents = batch._replace(x=posterior.z_0)
        return posterior.bound(self.prior.cross_entropy(params, latents, k_draw, stratum))

    def ode_bound(
        self,
        params: Params,
        batch: Batch,
        key: Key,
        sampler: Sampler,
        divergence: Divergence = RADEMACHER,
    ) -> ODEBound:
        """Computes the bound with log p(z_0) along the probability-flow ODE, one draw of z_0 per sample, nats.

        Args:
            sampler: an ODE solver and its steps.
        """
        k_posterior, k_probe = jax.random.split(key)
        posterior = self.posterior(params, batch.x, k_posterior)
        latents = batch._replace(x=posterior.z_0)
        prior = self.prior.log_density(params, latents, k_probe, sampler, divergence)
        joint = prior.log_prob - posterior.reconstruction - posterior.rest
        nelbo, log_weight = -posterior.entropy - joint, joint - posterior.log_q
        success = prior.success & finite_per_sample(nelbo)
        return ODEBound(nelbo, log_weight, prior.nfe, prior.products, success)

    def sample(
        self, params: Params, key: Key, count: int, sampler: Sampler, condition: Condition = None
    ) -> tuple[Latents, Solution]:
        """Draws `count` samples.

        Args:
            sampler: solver, steps, and guidance scale.
            condition: arrays [count, ...]; None for no condition.

        Returns:
            Data [count, ...], images in [-1, 1]; and the solution in latents with its NFE.
        """
        z_1, k_decode = self.draw_noise(params, key, count, sampler)
        return self.decode(params, z_1, k_decode, sampler, condition)

    def draw_noise(self, params: Params, key: Key, count: int, sampler: Sampler) -> tuple[State, Key]:
        """Draws the noise z_1 of `count` samples; returns it with the key for `decode`."""
        k_noise, k_decode = jax.random.split(key)
        return draw_noise(sampler, self.process(params), k_noise, (count, *self.latent_shape)), k_decode

    def decode(
        self, params: Params, z_1: State, key: Key, sampler: Sampler, condition: Condition = None
    ) -> tuple[Array, Solution]:
        """Solves from given noise z_1 to data; the key is for the noise of SDE solvers and random decoders.

        Data that are not finite have not succeeded, even where their latents are.
        """
        k_solve, k_decoder = jax.random.split(key) if self.decoder_draws else (key, key)
        given = self.encode_condition(params, condition)
        solution = self.prior.solve(params, z_1, k_solve, sampler, given)
        x = self.decode_latents(params, solution.z_0, k_decoder)
        return x, solution._replace(success=solution.success & finite_per_sample(x))

    def decode_path(
        self,
        params: Params,
        z_1: State,
        key: Key,
        sampler: Sampler,
        times: SavedTimes,
        condition: Condition = None,
    ) -> tuple[Array, Trajectory]:
        """Solves as `decode` does, and returns the data along the sampling trajectories, [times, batch, ...]."""
        k_solve, k_decoder = jax.random.split(key) if self.decoder_draws else (key, key)
        given = self.encode_condition(params, condition)
        path = self.prior.solve_path(params, z_1, k_solve, sampler, times, given)
        decode = lambda z_0: self.decode_latents(params, z_0, k_decoder)
        return jax.lax.map(decode, path.positions), path

    def encode(self, params: Params, batch: Batch, key: Key, sampler: Sampler) -> State:
        """Solves the probability-flow ODE from data to noise z_1."""
        k_encoder, k_solve = jax.random.split(key) if self.encoder_draws else (key, key)
        return self.prior.encode(params, self.encode_data(params, batch, k_encoder), k_solve, sampler)
