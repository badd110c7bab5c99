"""LSGM: a VAE whose prior is a score SDE, trained end to end (Vahdat, Kreis, Kautz 2021)."""

import dataclasses

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import EpsNet, Images, Key, Latents, Scalar, State, Times, coordinates
from lsgm_jax.diffusions.linear import Process, normal_eps, sample_prior, unit_noise
from lsgm_jax.models.network import Aux, Network, Params
from lsgm_jax.models.vae import VAE, Batch, Bound, bound_metrics
from lsgm_jax.objectives.elbo import Draw, Objective, denoise, denoise_separately
from lsgm_jax.objectives.times import Defensive, Stratum, TimeDensity, sample_times
from lsgm_jax.objectives.weights import likelihood
from lsgm_jax.scores.parameterise import mix
from lsgm_jax.solvers.ode import ODESolver, Solution, solve_to_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSGM:
    """VAE, forward process and score network. Parameters: {"vae", "score_net", "mixing_logit"}."""

    vae: VAE
    process: Process
    score_net: Network
    objective: Objective
    mixing_logit_init: float = -3.0

    def init(self, key: Key) -> Params:
        """Fresh parameters of VAE and prior."""
        k_vae, k_prior = jax.random.split(key)
        return {"vae": self.vae.init(k_vae)} | self.init_prior(k_prior)

    def init_prior(self, key: Key) -> Params:
        """Fresh parameters of the prior alone, to be joined with those of a trained VAE."""
        z_t = sample_prior(self.process, key, (1, *self.vae.latent_shape))
        return {
            "score_net": self.score_net.init(key, _in_channels(z_t), jnp.zeros(1)),
            "mixing_logit": jnp.full(self.vae.latent_shape[-1], self.mixing_logit_init, jnp.float32),
        }

    def eps_net(self, params: Params, dropout_key: Key | None = None) -> EpsNet:
        """The mixed noise prediction (z_t, t) -> eps_hat."""

        def predict(z_t: State, t: Times) -> Latents:
            net_eps = self.score_net.apply(params["score_net"], _in_channels(z_t), t, dropout_key=dropout_key)
            return mix(params["mixing_logit"], normal_eps(self.process, z_t, t), net_eps)

        return predict

    def loss(
        self, params: Params, batch: Batch, key: Key, kl_coefficient: float | Scalar = 1.0
    ) -> tuple[Scalar, Aux]:
        """One scalar whose gradient trains the VAE on the bound and the prior on its own weighting.

        Args:
            batch: images in [-1, 1].
            kl_coefficient: weight of KL(q || p) in the VAE's objective; the prior's loss does not see it.

        Returns:
            The scalar to differentiate (its value means little: it mixes weightings) and metrics, means over the
            batch in nats, of which `nelbo` estimates the bound.
        """
        k_vae, k_prior, k_encoder, k_dropout = jax.random.split(key, 4)
        encoded = self.vae.autoencode(params["vae"], batch.x, k_vae, train=True)
        z_0, entropy, _, rest = encoded.latent
        eps_net = self.eps_net(params, dropout_key=k_dropout)
        draw = self.draw(self.objective.density, k_prior, z_0)

        if self.objective.encoder_density is None:
            matching = denoise(self.objective, self.process, eps_net, z_0, draw, kl_coefficient)
        else:
            encoder_draw = self.draw(self.objective.encoder_density, k_encoder, z_0)
            frozen = self.eps_net(jax.lax.stop_gradient(params), dropout_key=k_dropout)
            matching = denoise_separately(
                self.objective, self.process, eps_net, frozen, z_0, draw, encoder_draw
            ).weighed(kl_coefficient)

        loss = jnp.mean(encoded.reconstruction + kl_coefficient * (rest - entropy) + matching.loss)
        bound = Bound(encoded.reconstruction, entropy, matching.cross_entropy + rest)
        metrics = bound_metrics(bound) | {"prior_loss": jnp.mean(matching.prior_loss)}
        return loss, Aux(metrics, {"vae": encoded.carried})

    def draw(self, density: TimeDensity, key: Key, z_0: Latents, stratum: Stratum = Stratum()) -> Draw:
        """Times from the density and unit noise for the latents."""
        k_times, k_eps = jax.random.split(key)
        t = sample_times(density, self.process, k_times, len(z_0), stratum, self.objective.spread)
        return Draw(t, unit_noise(self.process, k_eps, z_0.shape))

    def bound(self, params: Params, batch: Batch, key: Key, stratum: Stratum = Stratum()) -> Bound:
        """Terms of the NELBO per image, without dropout, one draw of z_0, t and eps each.

        Whatever the training objective, the times come from `Defensive` and the cross entropy is the low-noise
        estimate that is a bound for every t_min. Repeated draws should pass their `stratum`.
        """
        k_vae, k_draw = jax.random.split(key)
        encoded = self.vae.autoencode(params["vae"], batch.x, k_vae, train=False)
        scoring = Objective(prior_weighting=likelihood, density=Defensive(t_min=self.objective.density.t_min))
        z_0, entropy, _, rest = encoded.latent
        draw = self.draw(scoring.density, k_draw, z_0, stratum)
        matching = denoise(scoring, self.process, self.eps_net(params), z_0, draw)
        return Bound(encoded.reconstruction, entropy, matching.cross_entropy + rest)

    def sample(self, params: Params, key: Key, count: int, solver: ODESolver) -> tuple[Images, Solution]:
        """Expected images of `count` latents drawn from the prior by the probability-flow ODE."""
        k_prior, k_decoder = jax.random.split(key)
        shape = (count, *self.vae.latent_shape)
        solution = solve_to_data(solver, self.process, self.eps_net(params), k_prior, shape)
        return self.vae.decode(params["vae"], solution.z_0, k_decoder), solution


def _in_channels(z_t: State) -> Latents:
    """The coordinates side by side in the last axis: what a network takes."""
    return jnp.concatenate(coordinates(z_t), axis=-1)
