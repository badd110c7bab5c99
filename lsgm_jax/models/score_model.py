"""A diffusion of arrays: forward process, score network and objective.

Every model is one of these and what stands around it: `SGM` on the data, `LSGM` on the latents of a VAE that is trained
with it, `LDM` on the latents of a frozen first stage.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from lsgm_jax.arrays import (
    Condition,
    EpsNet,
    Key,
    Latents,
    Params,
    PerSample,
    Scalar,
    State,
    Times,
    as_state,
    coordinates,
    expand,
)
from lsgm_jax.conditioning.guidance import guide
from lsgm_jax.conditioning.protocol import (
    NO_CONTEXT,
    UNCONDITIONAL,
    Conditioning,
    Context,
    encode_condition,
    init_conditioner,
)
from lsgm_jax.nn.network import PLAINLY, Aux, Network, constants
from lsgm_jax.nn.penalised import penalised
from lsgm_jax.objectives.bound import Batch, Bound, bound_metrics
from lsgm_jax.objectives.elbo import (
    DSMLoss,
    Objective,
    dsm_loss,
    evaluation_cross_entropy,
    plain_dsm_loss,
    sample_draw,
)
from lsgm_jax.objectives.score_matching import noise_ratio
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.processes.linear import Process, gaussian_eps
from lsgm_jax.processes.predictions import Prediction, eps
from lsgm_jax.solvers.integrate import SavedTimes
from lsgm_jax.solvers.likelihood import RADEMACHER, Divergence, LogDensity, log_density
from lsgm_jax.solvers.sampler import Sampler, Solution, solve_to_data, solve_to_noise
from lsgm_jax.solvers.terms import KeyedNoise
from lsgm_jax.solvers.trajectory import Trajectory, trajectory_to_data

MixingLogit = Float[Array, "channels"]
# A known part of the noise prediction, of process, state and time; the state is the process's kind.
FixedPart = Callable[[Any, Any, Times], Latents]
Start = Callable[[Any], Process]
PerChannel = Float[Array, "channels"]
# The share of the network in the prediction of an inactive channel is sigmoid(-15) = 3e-7.
INACTIVE_LOGIT = -15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreModel:
    """A score-based model of arrays of one shape.

    Parameters: {"score_net"}; {"conditioner"} if the conditioning has parameters; {"mixing_logit"} with a mixed score;
    {"state": {"active"}} with an inactivity threshold; {"process"} if the process is learned (see `process_of`).

    Attributes:
        shape: of one sample: (height, width, channels), or (dimensions,).
        process: the forward SDE, unless the parameters hold another.
        net: the score network.
        objective: weighting, times and norm of the loss.
        prediction: meaning of the network's output: noise, data, v or velocity (D17).
        fixed_part: known part of the noise prediction, to which the network's output is added: the mixed score of CLD
            (CLD section 3.2). None leaves everything to the network.
        start: for CLD, `known_start`: the loss is plain score matching given data and initial velocity, and the network
            predicts the noise of that kernel. None for hybrid score matching, given the data alone (CLD section 3.1).
        mixing_logit_init: initial logit of the network's share in the mixed score of LSGM (LSGM section 3.2); None
            for no mixing with the Gaussian score.
        inactive_kl: with a positive threshold, in nats, the parameters say which channels are "active"; see
            `freeze_inactive`.
        conditioning: encodes the conditions of samples.
    """

    shape: tuple[int, ...]
    process: Process
    net: Network
    objective: Objective
    prediction: Prediction = eps
    fixed_part: FixedPart | None = None
    start: Start | None = None
    mixing_logit_init: float | None = None
    inactive_kl: float = 0.0
    conditioning: Conditioning = UNCONDITIONAL

    def process_of(self, params: Params) -> Process:
        """Returns the forward process: a learned one, under "process" in the parameters, or the fixed one."""
        return params.get("process", self.process)

    def init(self, key: Key) -> Params:
        """Returns fresh parameters."""
        z_t = as_state([jnp.zeros((1, *self.shape))] * len(self.process.prior_variance()))
        # The network has the key itself: the initial values of unconditional models predate conditions.
        conditioner = init_conditioner(self.conditioning, jax.random.fold_in(key, 1))
        context = encode_condition(self.conditioning, conditioner, None, 1)
        params = {
            "score_net": self.net.init(key, *context.inputs(in_channels(z_t), jnp.ones(1))),
            **conditioner,
        }
        if self.mixing_logit_init is not None:
            params["mixing_logit"] = jnp.full(self.shape[-1], self.mixing_logit_init, jnp.float32)
        if self.inactive_kl:
            params["state"] = {"active": jnp.ones(self.shape[-1], jnp.float32)}
        return params

    def freeze_inactive(self, params: Params, kl: PerChannel) -> Params:
        """Returns the parameters with the Gaussian prior for channels that hold no more than `inactive_kl`.

        The network then neither sees these channels nor has a share in their prediction.

        Args:
            kl: KL(q || N(0, I)) of each channel of z_0, nats, mean over images.
        """
        active = jnp.asarray(kl > self.inactive_kl, jnp.float32)
        logit = jnp.where(active > 0.0, params["mixing_logit"], INACTIVE_LOGIT)
        return params | {"mixing_logit": logit, "state": {"active": active}}

    def state(self, params: Params) -> Params:
        """Returns the non-trainable state, which no loss changes; see `Aux.state`."""
        return {"score_net": constants(params["score_net"]), **constants(params)}

    def eps_net(
        self, params: Params, dropout_key: Key | None = None, context: Context = NO_CONTEXT
    ) -> EpsNet:
        """Returns the noise prediction (z_t, t) -> eps_hat, mixed with its known parts."""
        process = self.process_of(params)

        def predict(context: Context, z_t: State, t: Times) -> Latents:
            active = params["state"]["active"] if self.inactive_kl else 1.0
            inputs = context.inputs(in_channels(jax.tree.map(lambda z: active * z, z_t)), t)
            output = self.net.apply(params["score_net"], *inputs, dropout_key=dropout_key)
            net_eps = self.prediction(process, z_t, t, output)
            if self.start is not None:
                net_eps *= expand(noise_ratio(process, self.start(process), t), net_eps)
            if self.fixed_part is not None:
                net_eps += self.fixed_part(process, z_t, t)
            if self.mixing_logit_init is None:
                return net_eps
            return mix(params["mixing_logit"], gaussian_eps(process, z_t, t), net_eps)

        return Partial(predict, context)

    def data_net(
        self,
        params: Params,
        batch: Batch,
        k_dropout: Key | None = None,
        k_condition: Key | None = None,
    ) -> EpsNet:
        """Returns the noise prediction given the conditions of the data; the keys are for training.

        It is never guided: the density that guidance samples is not known.
        """
        compute = PLAINLY if k_condition is None else self.net.compute
        context = encode_condition(
            self.conditioning, params, batch.condition, len(batch.x), k_condition, compute
        )
        return self.eps_net(params, k_dropout, context)

    def sampling_net(self, params: Params, condition: Condition, z_1: State, guidance: float) -> EpsNet:
        """Returns the noise prediction for samples of a condition, guided unless the guidance scale is 1."""
        given = lambda context: self.eps_net(params, context=context)
        count = len(coordinates(z_1)[0])
        null = encode_condition(self.conditioning, params, None, count)
        if condition is None or guidance == 0.0:
            return given(null)
        context = encode_condition(self.conditioning, params, condition, count)
        return given(context) if guidance == 1.0 else guide(given, null, context, guidance)

    def dsm_loss(self, params: Params, batch: Batch, eps_net: EpsNet, key: Key) -> DSMLoss:
        """Computes the denoising score matching loss of given arrays, per sample, nats."""
        process = self.process_of(params)
        if self.start is not None:
            return plain_dsm_loss(self.objective, process, self.start(process), eps_net, batch.x, key)
        draw = sample_draw(self.objective.density, self.objective.spread, process, key, batch.x)
        return dsm_loss(self.objective, process, eps_net, batch.x, draw)

    def loss(self, params: Params, batch: Batch, key: Key, data_entropy: float = 0.0) -> tuple[Scalar, Aux]:
        """Computes the score matching loss under the objective's weighting, mean over the batch, nats.

        Args:
            data_entropy: entropy of noise in the data, such as dequantisation, nats per sample; for the metrics.
        """
        k_draw, k_dropout, k_condition = jax.random.split(key, 3)
        eps_net = self.data_net(params, batch, k_dropout, k_condition)
        dsm = self.dsm_loss(params, batch, eps_net, k_draw)
        metrics = bound_metrics(_bound(dsm.cross_entropy, data_entropy))
        return jnp.mean(dsm.prior_loss), Aux(metrics, self.state(params), self.penalised(params))

    def penalised(self, params: Params) -> dict:
        """Returns the weights that penalties apply to, by network."""
        return {"prior": penalised(params["score_net"])}

    def cross_entropy(self, params: Params, batch: Batch, key: Key, stratum: Stratum) -> PerSample:
        """Estimates -log p of given arrays without dropout, one draw of t and eps each, nats (O7)."""
        eps_net = self.data_net(params, batch)
        t_min = self.objective.density.t_min
        return evaluation_cross_entropy(self.process_of(params), eps_net, batch.x, t_min, key, stratum)

    def bound(self, params: Params, batch: Batch, key: Key, stratum: Stratum = Stratum()) -> Bound:
        """Computes the terms of a bound on -log p of given arrays, one draw of t and eps each, nats."""
        return _bound(self.cross_entropy(params, batch, key, stratum), 0.0)

    def log_density(
        self, params: Params, batch: Batch, key: Key, sampler: Sampler, divergence: Divergence = RADEMACHER
    ) -> LogDensity:
        """Computes log p of given arrays along the probability-flow ODE, nats.

        Args:
            sampler: an ODE solver and its steps.
        """
        eps_net = self.data_net(params, batch)
        return log_density(sampler, self.process_of(params), eps_net, key, batch.x, divergence)

    def solve(self, params: Params, z_1: State, key: Key, sampler: Sampler, condition: Condition) -> Solution:
        """Solves from noise z_1 to samples; the key is for the noise of SDE solvers."""
        eps_net = self.sampling_net(params, condition, z_1, sampler.guidance)
        return solve_to_data(sampler, self.process_of(params), eps_net, z_1, KeyedNoise(key))

    def solve_path(
        self, params: Params, z_1: State, key: Key, sampler: Sampler, times: SavedTimes, condition: Condition
    ) -> Trajectory:
        """Solves as `solve` does, and returns the sampling trajectories at `times`."""
        eps_net = self.sampling_net(params, condition, z_1, sampler.guidance)
        return trajectory_to_data(sampler, self.process_of(params), eps_net, z_1, KeyedNoise(key), times)

    def encode(self, params: Params, batch: Batch, key: Key, sampler: Sampler) -> State:
        """Solves the probability-flow ODE from given arrays to noise z_1."""
        return solve_to_noise(sampler, self.process_of(params), self.data_net(params, batch), key, batch.x)


def _bound(cross_entropy: PerSample, data_entropy: float) -> Bound:
    """The bound of arrays that an encoder of known entropy made and a decoder decodes without error."""
    zero = jnp.zeros_like(cross_entropy)
    return Bound(zero, zero + data_entropy, cross_entropy)


def mix(mixing_logit: MixingLogit, gaussian_eps: Latents, net_eps: Latents) -> Latents:
    """Mixed score: (1 - m) gaussian_eps + m net_eps with m = sigmoid(mixing_logit) per channel (LSGM section 3.2).

    Args:
        mixing_logit: one per channel, the last axis of the latent.
        gaussian_eps: the exact noise prediction for a Gaussian latent of the process's `data_variance` (D3).
        net_eps: the network's noise prediction.
    """
    share = jax.nn.sigmoid(mixing_logit)
    return (1.0 - share) * gaussian_eps + share * net_eps


def in_channels(z_t: State) -> Latents:
    """The coordinates side by side in the last axis: what a network takes."""
    return jnp.concatenate(coordinates(z_t), axis=-1)
