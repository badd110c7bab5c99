"""A score-based generative model of the data itself: a process and a score network, no autoencoder.

With `CLD` as the process it is CLD-SGM (Dockhorn, Vahdat, Kreis 2022); with `VP`, its baseline in the same trainer.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from lsgm_jax.arrays import EpsNet, Key, Latents, Scalar, State, Times, expand
from lsgm_jax.models.conditional import (
    NO_CONTEXT,
    UNCONDITIONAL,
    Condition,
    Conditioning,
    Context,
    data_net,
    init_conditioner,
    sampling_net,
    told,
)
from lsgm_jax.nn.mixed_score import FixedPart, in_channels
from lsgm_jax.nn.network import Aux, Network, Params, constants
from lsgm_jax.nn.penalised import penalised
from lsgm_jax.objectives.bound import Batch, Bound, ODEBound, bound_metrics
from lsgm_jax.objectives.elbo import (
    Objective,
    match_data,
    match_data_and_velocity,
    score_cross_entropy,
)
from lsgm_jax.objectives.score_matching import noise_ratio
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.processes.linear import Process, sample_prior
from lsgm_jax.processes.predictions import Prediction, eps
from lsgm_jax.solvers.integrate import SavedTimes
from lsgm_jax.solvers.likelihood import RADEMACHER, Divergence, log_density
from lsgm_jax.solvers.sampler import Sampler, Solution, draw_noise, solve_to_data, solve_to_noise
from lsgm_jax.solvers.terms import KeyedNoise
from lsgm_jax.solvers.trajectory import Trajectory, trajectory_to_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGM:
    """Forward process and score network. Parameters: {"score_net"}, and the "conditioner" if conditions need one.

    Attributes:
        data_shape: of one sample: (height, width, channels), or (dimensions,).
        bin_width: distance of the grey levels in [-1, 1]; scoring spreads each value over its bin, and the bound then
            is on the probability of the grey levels. 0 for continuous data.
        fixed_part: known part of the noise prediction, to which the network's output is added: the mixed score
            (CLD section 3.2). None leaves all to the network.
        start: of CLD, `known_start(process)`: to match the score given data and initial velocity, plainly, and have the
            network predict the noise of that kernel. None to match it given the data alone, hybridly (CLD section 3.1).
        prediction: what the network's output means; any but `eps` goes with neither a fixed part nor `start`.
    """

    data_shape: tuple[int, ...]
    process: Process
    score_net: Network
    objective: Objective
    bin_width: float = 0.0
    fixed_part: FixedPart | None = None
    start: Process | None = None
    conditioning: Conditioning = UNCONDITIONAL
    prediction: Prediction = eps

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of what the score describes: the data."""
        return self.data_shape

    @property
    def pixel_values(self) -> int:
        """How many values of a grid the bound is about; 0 if the data are continuous."""
        return math.prod(self.data_shape) if self.bin_width else 0

    @property
    def labels(self) -> int:
        """None: what is diffused are quantities."""
        return 0

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        z_t = sample_prior(self.process, key, (1, *self.data_shape))
        conditioner = init_conditioner(self.conditioning, key)
        inputs = told(self.conditioning, conditioner, None, 1).inputs(in_channels(z_t), jnp.ones(1))
        return {"score_net": self.score_net.init(key, *inputs), **conditioner}

    def eps_net(
        self, params: Params, dropout_key: Key | None = None, context: Context = NO_CONTEXT
    ) -> EpsNet:
        """The noise prediction (z_t, t) -> eps_hat, its fixed part included."""

        def predict(context: Context, z_t: State, t: Times) -> Latents:
            inputs = context.inputs(in_channels(z_t), t)
            output = self.score_net.apply(params["score_net"], *inputs, dropout_key=dropout_key)
            net_eps = self.prediction(self.process, z_t, t, output)
            if self.start is not None:
                net_eps *= expand(noise_ratio(self.process, self.start, t), net_eps)
            return net_eps if self.fixed_part is None else self.fixed_part(self.process, z_t, t) + net_eps

        return Partial(predict, context)

    def loss(self, params: Params, batch: Batch, key: Key) -> tuple[Scalar, Aux]:
        """Score matching under the objective's weighting, mean over the batch, nats.

        The data are taken as they are, without dequantisation.
        """
        k_draw, k_dropout, k_condition = jax.random.split(key, 3)
        eps_net = data_net(self, params, batch, k_dropout, k_condition)
        if self.start is None:
            matching = match_data(self.objective, self.process, eps_net, batch.x, k_draw)
        else:
            matching = match_data_and_velocity(
                self.objective, self.process, self.start, eps_net, batch.x, k_draw
            )
        metrics = bound_metrics(self._bound(matching.cross_entropy))
        state = {"score_net": constants(params["score_net"])}
        return jnp.mean(matching.prior_loss), Aux(metrics, state, {"prior": penalised(params["score_net"])})

    def bound(self, params: Params, batch: Batch, key: Key, stratum: Stratum = Stratum()) -> Bound:
        """Terms of a bound on -log p(x), without dropout, one draw per sample; see `score_cross_entropy`."""
        k_bin, k_draw = jax.random.split(key)
        z_0, t_min = self._dequantise(batch.x, k_bin), self.objective.density.t_min
        eps_net = data_net(self, params, batch)
        return self._bound(score_cross_entropy(self.process, eps_net, z_0, t_min, k_draw, stratum))

    def ode_bound(
        self,
        params: Params,
        batch: Batch,
        key: Key,
        sampler: Sampler,
        divergence: Divergence = RADEMACHER,
    ) -> ODEBound:
        """-log p(x) along the probability-flow ODE: a bound, of which dequantisation and velocity are drawn once.

        Args:
            sampler: its solver, which has to be one of ODEs, and its steps.
        """
        k_bin, k_probe = jax.random.split(key)
        z_0 = self._dequantise(batch.x, k_bin)
        eps_net = data_net(self, params, batch)
        density = log_density(sampler, self.process, eps_net, k_probe, z_0, divergence)
        nelbo = self._bound(-density.log_prob).nelbo
        return ODEBound(nelbo, -nelbo, density.nfe, density.products, density.success)

    def sample(
        self, params: Params, key: Key, count: int, sampler: Sampler, condition: Condition = None
    ) -> tuple[Latents, Solution]:
        """`count` samples drawn from the prior, of a condition if one is given."""
        k_noise, k_decode = jax.random.split(key)
        z_1 = draw_noise(sampler, self.process, k_noise, (count, *self.data_shape))
        return self.decode(params, z_1, k_decode, sampler, condition)

    def decode(
        self, params: Params, z_1: State, key: Key, sampler: Sampler, condition: Condition = None
    ) -> tuple[Latents, Solution]:
        """Samples of given noise; the key is for what is drawn on the way."""
        eps_net = sampling_net(self, params, condition, z_1, sampler.guidance)
        solution = solve_to_data(sampler, self.process, eps_net, z_1, KeyedNoise(key))
        return solution.z_0, solution

    def decode_path(
        self,
        params: Params,
        z_1: State,
        key: Key,
        sampler: Sampler,
        times: SavedTimes,
        condition: Condition = None,
    ) -> tuple[Array, Trajectory]:
        """Where the samples were on the way, [times, batch, ...]; the last are those of `decode`."""
        eps_net = sampling_net(self, params, condition, z_1, sampler.guidance)
        path = trajectory_to_data(sampler, self.process, eps_net, z_1, KeyedNoise(key), times)
        return path.positions, path

    def encode(self, params: Params, batch: Batch, key: Key, sampler: Sampler) -> State:
        """The noise z_1 whose way back passes the data."""
        return solve_to_noise(sampler, self.process, data_net(self, params, batch), key, batch.x)

    def _dequantise(self, x: Latents, key: Key) -> Latents:
        """Adds noise that is uniform over the bins."""
        return x + self.bin_width * (jax.random.uniform(key, x.shape, x.dtype) - 0.5)

    def _bound(self, cross_entropy: Latents) -> Bound:
        """Dequantisation as an encoder: uniform over each value's bin, and decoded without error."""
        entropy = math.prod(self.data_shape) * math.log(self.bin_width) if self.bin_width else 0.0
        zero = jnp.zeros_like(cross_entropy)
        return Bound(zero, zero + entropy, cross_entropy)
