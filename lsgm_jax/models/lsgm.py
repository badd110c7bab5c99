"""LSGM: a VAE whose prior is a score SDE, trained end to end (Vahdat, Kreis, Kautz 2021)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from lsgm_jax.arrays import (
    EpsNet,
    Images,
    Key,
    Latents,
    PerSample,
    Scalar,
    State,
    Times,
    sum_per_sample,
)
from lsgm_jax.autoencoders.likelihoods import label_count, scored_values
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
from lsgm_jax.models.vae import VAE, Encoded
from lsgm_jax.nn.mixed_score import FixedPart, in_channels, mix
from lsgm_jax.nn.network import Aux, Network, Params, constants
from lsgm_jax.nn.penalised import penalised
from lsgm_jax.objectives.bound import Batch, Bound, ODEBound, bound_metrics
from lsgm_jax.objectives.elbo import (
    Draw,
    Objective,
    denoise,
    denoise_separately,
    sample_draw,
    score_cross_entropy,
)
from lsgm_jax.objectives.kl import KLWeight
from lsgm_jax.objectives.time_densities import Stratum, TimeDensity
from lsgm_jax.processes.linear import Process, gaussian_eps, sample_prior
from lsgm_jax.solvers.integrate import SavedTimes
from lsgm_jax.solvers.likelihood import RADEMACHER, Divergence, log_density
from lsgm_jax.solvers.sampler import Sampler, Solution, draw_noise, solve_to_data, solve_to_noise
from lsgm_jax.solvers.terms import KeyedNoise
from lsgm_jax.solvers.trajectory import Trajectory, trajectory_to_data

PerChannel = Float[Array, "channels"]
# The share of the network in the prediction of an inactive channel: 3e-7.
INACTIVE_LOGIT = -15.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSGM:
    """VAE, forward process and score network. Parameters: {"vae", "score_net", "mixing_logit"}.

    A condition is the prior's alone, and so are the parameters of a "conditioner": encoder and decoder do not see it.

    Attributes:
        fixed_part: known part of the network's noise prediction, to which its output is added before it is mixed with
            the Gaussian one. For CLD that of its own mixed score, which small times need (D3); None leaves all to the
            network, as published for LSGM.
        inactive_kl: channels of z_0 that hold no more than this under a trained VAE, in nats, are left to the Gaussian
            prior (see `leave_inactive`), and the parameters say under "state" which are "active". 0 keeps all.
    """

    vae: VAE
    process: Process
    score_net: Network
    objective: Objective
    fixed_part: FixedPart | None = None
    mixing_logit_init: float = -3.0
    inactive_kl: float = 0.0
    conditioning: Conditioning = UNCONDITIONAL

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Of one image."""
        return self.vae.image_shape

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of what the score describes."""
        return self.vae.latent_shape

    @property
    def pixel_values(self) -> int:
        """How many values of a grid the bound is about."""
        return scored_values(self.vae.likelihood, self.vae.image_shape)

    @property
    def labels(self) -> int:
        """How many labels the values of the data stand for; 0 if they are quantities."""
        return label_count(self.vae.likelihood)

    def init(self, key: Key) -> Params:
        """Fresh parameters of VAE and prior."""
        k_vae, k_prior = jax.random.split(key)
        return {"vae": self.vae.init(k_vae)} | self.init_prior(k_prior)

    def init_prior(self, key: Key) -> Params:
        """Fresh parameters of the prior alone, to be joined with those of a trained VAE."""
        z_t = sample_prior(self.process, key, (1, *self.vae.latent_shape))
        channels = self.vae.latent_shape[-1]
        active = {"state": {"active": jnp.ones(channels, jnp.float32)}} if self.inactive_kl else {}
        conditioner = init_conditioner(self.conditioning, key)
        inputs = told(self.conditioning, conditioner, None, 1).inputs(in_channels(z_t), jnp.zeros(1))
        return {
            "score_net": self.score_net.init(key, *inputs),
            "mixing_logit": jnp.full(channels, self.mixing_logit_init, jnp.float32),
            **conditioner,
            **active,
        }

    def leave_inactive(self, params: Params, kl: PerChannel) -> Params:
        """Leaves channels to the Gaussian prior: the network neither sees them nor has a share in their prediction.

        Args:
            kl: what each channel of z_0 holds, KL(q || N(0, I)), nats, mean over images.
        """
        active = jnp.asarray(kl > self.inactive_kl, jnp.float32)
        logit = jnp.where(active > 0.0, params["mixing_logit"], INACTIVE_LOGIT)
        return params | {"mixing_logit": logit, "state": {"active": active}}

    def eps_net(
        self, params: Params, dropout_key: Key | None = None, context: Context = NO_CONTEXT
    ) -> EpsNet:
        """The mixed noise prediction (z_t, t) -> eps_hat."""

        def predict(context: Context, z_t: State, t: Times) -> Latents:
            active = params["state"]["active"] if self.inactive_kl else 1.0
            inputs = context.inputs(in_channels(jax.tree.map(lambda z: active * z, z_t)), t)
            net_eps = self.score_net.apply(params["score_net"], *inputs, dropout_key=dropout_key)
            if self.fixed_part is not None:
                net_eps += self.fixed_part(self.process, z_t, t)
            return mix(params["mixing_logit"], gaussian_eps(self.process, z_t, t), net_eps)

        return Partial(predict, context)

    def loss(
        self,
        params: Params,
        batch: Batch,
        key: Key,
        kl: KLWeight = KLWeight(),
        ema_params: Params | None = None,
    ) -> tuple[Scalar, Aux]:
        """One scalar whose gradient trains the VAE on the bound and the prior on its own weighting.

        Args:
            batch: images in [-1, 1].
            kl: weight of KL(q || p) in the VAE's objective; the prior's loss does not see it.
            ema_params: parameters whose prior the encoder meets if the objective says so; None for `params`.

        Returns:
            The scalar to differentiate (its value means little: it mixes weightings) and metrics, means over the
            batch in nats, of which `nelbo` estimates the bound.
        """
        k_vae, k_prior, k_encoder, k_dropout, k_condition = jax.random.split(key, 5)
        encoded = self.vae.autoencode(params["vae"], batch.x, k_vae, train=True)
        z_0 = encoded.latent.z_0
        eps_net = data_net(self, params, batch, k_dropout, k_condition)
        draw = self._draw(self.objective.density, k_prior, z_0)

        if self.objective.encoder_density is None:
            matching = denoise(self.objective, self.process, eps_net, z_0, draw, kl.coefficient)
            others = kl.coefficient * (encoded.latent.rest - encoded.latent.total_entropy)
            loss = encoded.reconstruction + others + matching.loss
            prior_loss, cross_entropy = matching.prior_loss, matching.cross_entropy
        else:
            met = params if ema_params is None or not self.objective.encoder_uses_ema else ema_params
            frozen = data_net(self, jax.lax.stop_gradient(met), batch, k_dropout, k_condition)
            encoder_draw = self._draw(self.objective.encoder_density, k_encoder, z_0)
            separate = denoise_separately(
                self.objective, self.process, eps_net, frozen, z_0, draw, encoder_draw
            )
            divergence = self.vae.divergence(encoded, separate.cross_entropy, kl)
            loss = encoded.reconstruction + divergence + separate.prior_loss
            prior_loss, cross_entropy = separate.prior_loss, sum_per_sample(separate.cross_entropy)

        metrics = _metrics(encoded, cross_entropy, prior_loss)
        state = {"vae": encoded.state, **self._constants(params)}
        weights = {"vae": encoded.penalised, "prior": penalised(params["score_net"])}
        return jnp.mean(loss), Aux(metrics, state, weights)

    def prior_loss(self, params: Params, batch: Batch, key: Key) -> tuple[Scalar, Aux]:
        """The prior's loss alone: the VAE is frozen, and encodes as it does for scoring. Otherwise as `loss`."""
        k_vae, k_prior, k_dropout, k_condition = jax.random.split(key, 4)
        encoded = self.vae.autoencode(jax.lax.stop_gradient(params["vae"]), batch.x, k_vae, train=False)
        z_0, eps_net = encoded.latent.z_0, data_net(self, params, batch, k_dropout, k_condition)
        draw = self._draw(self.objective.density, k_prior, z_0)
        matching = denoise(self.objective, self.process, eps_net, z_0, draw)
        metrics = _metrics(encoded, matching.cross_entropy, matching.prior_loss)
        # Nothing of the VAE moves, not even by the optimiser's weight decay.
        state = {"vae": params["vae"], **self._constants(params)}
        weights = {"prior": penalised(params["score_net"])}
        return jnp.mean(matching.prior_loss), Aux(metrics, state, weights)

    def bound(self, params: Params, batch: Batch, key: Key, stratum: Stratum = Stratum()) -> Bound:
        """Terms of the NELBO per image, without dropout, one draw of z_0, t and eps each; see `score_cross_entropy`."""
        k_vae, k_draw = jax.random.split(key)
        encoded = self.vae.autoencode(params["vae"], batch.x, k_vae, train=False)
        latent, t_min = encoded.latent, self.objective.density.t_min
        eps_net = data_net(self, params, batch)
        cross_entropy = score_cross_entropy(self.process, eps_net, latent.z_0, t_min, k_draw, stratum)
        return _bound(encoded, cross_entropy)

    def ode_bound(
        self,
        params: Params,
        batch: Batch,
        key: Key,
        sampler: Sampler,
        divergence: Divergence = RADEMACHER,
    ) -> ODEBound:
        """The NELBO with log p(z_0) integrated along the probability-flow ODE, one draw of z_0 per image.

        Args:
            sampler: its solver, which has to be one of ODEs, and its steps.
        """
        k_vae, k_probe = jax.random.split(key)
        encoded = self.vae.autoencode(params["vae"], batch.x, k_vae, train=False)
        latent, eps_net = encoded.latent, data_net(self, params, batch)
        prior = log_density(sampler, self.process, eps_net, k_probe, latent.z_0, divergence)
        joint = prior.log_prob - encoded.reconstruction - latent.rest
        nelbo, log_weight = -latent.total_entropy - joint, joint - latent.log_q
        return ODEBound(nelbo, log_weight, prior.nfe, prior.products, prior.success)

    def sample(
        self, params: Params, key: Key, count: int, sampler: Sampler, condition: Condition = None
    ) -> tuple[Images, Solution]:
        """Expected images of `count` latents drawn from the prior, of a condition if one is given."""
        k_noise, k_decode = jax.random.split(key)
        z_1 = draw_noise(sampler, self.process, k_noise, (count, *self.latent_shape))
        return self.decode(params, z_1, k_decode, sampler, condition)

    def decode(
        self, params: Params, z_1: State, key: Key, sampler: Sampler, condition: Condition = None
    ) -> tuple[Images, Solution]:
        """Expected images of given noise; the key is for what is drawn on the way."""
        k_solve, k_decoder = jax.random.split(key)
        eps_net = sampling_net(self, params, condition, z_1, sampler.guidance)
        solution = solve_to_data(sampler, self.process, eps_net, z_1, KeyedNoise(k_solve))
        return self.vae.decode(params["vae"], solution.z_0, k_decoder), solution

    def decode_path(
        self,
        params: Params,
        z_1: State,
        key: Key,
        sampler: Sampler,
        times: SavedTimes,
        condition: Condition = None,
    ) -> tuple[Array, Trajectory]:
        """Expected images of the latents on the way, [times, batch, h, w, c]; the last are those of `decode`."""
        k_solve, k_decoder = jax.random.split(key)
        eps_net = sampling_net(self, params, condition, z_1, sampler.guidance)
        path = trajectory_to_data(sampler, self.process, eps_net, z_1, KeyedNoise(k_solve), times)
        decode = lambda z: self.vae.decode(params["vae"], z, k_decoder)
        return jax.lax.map(decode, path.positions), path

    def encode(self, params: Params, batch: Batch, key: Key, sampler: Sampler) -> State:
        """The noise z_1 whose way back passes a draw of q(z_0 | x)."""
        k_vae, k_solve = jax.random.split(key)
        encoded = self.vae.autoencode(params["vae"], batch.x, k_vae, train=False)
        eps_net = data_net(self, params, batch)
        return solve_to_noise(sampler, self.process, eps_net, k_solve, encoded.latent.z_0)

    def _constants(self, params: Params) -> Params:
        """What of the prior never changes, as `Aux.state`."""
        return {"score_net": constants(params["score_net"]), **constants(params)}

    def _draw(self, density: TimeDensity, key: Key, z_0: Latents) -> Draw:
        return sample_draw(density, self.objective.spread, self.process, key, z_0)


def _bound(encoded: Encoded, cross_entropy: PerSample) -> Bound:
    """The terms of the NELBO, of which the prior gives the cross entropy of z_0."""
    latent = encoded.latent
    return Bound(encoded.reconstruction, latent.total_entropy, cross_entropy + latent.rest)


def _metrics(encoded: Encoded, cross_entropy: PerSample, prior_loss: PerSample) -> dict[str, Scalar]:
    return bound_metrics(_bound(encoded, cross_entropy)) | {"prior_loss": jnp.mean(prior_loss)}
