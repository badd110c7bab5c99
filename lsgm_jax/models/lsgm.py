"""LSGM: a VAE whose prior is a score SDE, trained end to end (Vahdat, Kreis, Kautz 2021)."""

import dataclasses

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Condition, Images, Key, Latents, Params, PerSample, Scalar
from lsgm_jax.autoencoders.likelihoods import label_count, scored_values
from lsgm_jax.models.protocol import Model
from lsgm_jax.models.score_model import ScoreModel
from lsgm_jax.models.vae import VAE
from lsgm_jax.nn.network import Aux
from lsgm_jax.objectives.bound import Batch, Posterior, bound_metrics
from lsgm_jax.objectives.elbo import joint_dsm_loss, joint_dsm_loss_separate_t
from lsgm_jax.objectives.kl import KLWeight


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSGM(Model):
    """A VAE and a score model of its latents. Parameters: {"vae"} and those of the `ScoreModel`.

    The condition is the prior's alone: encoder and decoder do not see it.
    """

    vae: VAE
    prior: ScoreModel
    stages = ("vae", "joint")
    encoder_draws = decoder_draws = True

    @property
    def autoencoder(self) -> VAE:
        """The VAE."""
        return self.vae

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.vae.image_shape

    @property
    def pixel_values(self) -> int:
        """The number of discrete values per image that the bound is on."""
        return scored_values(self.vae.likelihood, self.vae.image_shape)

    @property
    def labels(self) -> int:
        """The number of labels that the values of the data stand for; 0 if they are quantities."""
        return label_count(self.vae.likelihood)

    def init(self, key: Key) -> Params:
        """Returns fresh parameters of VAE and prior."""
        k_vae, k_prior = jax.random.split(key)
        return {"vae": self.vae.init(k_vae)} | self.prior.init(k_prior)

    def loss(
        self,
        params: Params,
        batch: Batch,
        key: Key,
        kl: KLWeight = KLWeight(),
        ema_params: Params | None = None,
    ) -> tuple[Scalar, Aux]:
        """Computes the joint loss, mean over the batch: the VAE learns by the bound, the prior by its own weighting.

        Args:
            batch: images in [-1, 1].
            kl: weight of KL(q || p) in the VAE's loss; the prior's loss does not see it.
            ema_params: parameters whose prior the encoder's loss uses if the objective says so; None for `params`.

        Returns:
            The scalar to differentiate (its value means little: it mixes weightings) and metrics, means over the
            batch in nats, of which `nelbo` estimates the bound.
        """
        k_vae, k_prior, k_encoder, k_dropout, k_condition = jax.random.split(key, 5)
        autoencode = lambda x: self.vae.autoencode(params["vae"], x, k_vae, train=True)
        eps_net = self.prior.data_net(params, batch, k_dropout, k_condition)
        objective, process = self.prior.objective, self.process(params)
        if objective.encoder_density is None and not kl.balanced:
            joint = joint_dsm_loss(objective, process, autoencode, eps_net, batch.x, k_prior, kl)
        else:
            used = ema_params if ema_params is not None and objective.encoder_uses_ema else params
            frozen = self.prior.data_net(jax.lax.stop_gradient(used), batch, k_dropout, k_condition)
            groups, keys = self.vae.backbone.groups_per_scale, (k_prior, k_encoder)
            joint = joint_dsm_loss_separate_t(
                objective, process, autoencode, (eps_net, frozen), batch.x, keys, kl, groups
            )
        encoded = joint.encoded
        metrics = _metrics(encoded.posterior, joint.cross_entropy, joint.prior_loss)
        state = {"vae": encoded.state, **self.prior.state(params)}
        weights = {"vae": encoded.penalised, **self.prior.penalised(params)}
        return jnp.mean(joint.loss), Aux(metrics, state, weights)

    def prior_loss(self, params: Params, batch: Batch, key: Key) -> tuple[Scalar, Aux]:
        """Computes the loss of the prior alone: the VAE is frozen, and encodes as in evaluation. See `loss`."""
        k_vae, k_prior, k_dropout, k_condition = jax.random.split(key, 4)
        posterior = self.posterior(jax.lax.stop_gradient(params), batch.x, k_vae)
        eps_net = self.prior.data_net(params, batch, k_dropout, k_condition)
        latents = batch._replace(x=posterior.z_0)
        dsm = self.prior.dsm_loss(params, latents, eps_net, k_prior)
        metrics = _metrics(posterior, dsm.cross_entropy, dsm.prior_loss)
        # The VAE is state: it is frozen, also for the weight decay of an optimiser.
        state = {"vae": params["vae"], **self.prior.state(params)}
        return jnp.mean(dsm.prior_loss), Aux(metrics, state, self.prior.penalised(params))

    def posterior(self, params: Params, x: Images, key: Key) -> Posterior:
        """Draws z_0 ~ q(z_0 | x), with its terms of the bound."""
        return self.vae.autoencode(params["vae"], x, key, train=False).posterior

    def encode_data(self, params: Params, batch: Batch, key: Key) -> Batch:
        """Draws latents z_0 ~ q(z_0 | x)."""
        return batch._replace(x=self.posterior(params, batch.x, key).z_0)

    def encode_known(self, params: Params, x: Images, key: Key) -> Latents:
        """Draws latents z_0 ~ q(z_0 | x)."""
        return self.posterior(params, x, key).z_0

    def encode_condition(self, params: Params, condition: Condition) -> Condition:
        """Returns the condition."""
        return condition

    def decode_latents(self, params: Params, z_0: Latents, key: Key) -> Images:
        """Returns expected images, [batch, h, w, c] in [-1, 1]."""
        return self.vae.decode(params["vae"], z_0, key)


def _metrics(posterior: Posterior, cross_entropy: PerSample, prior_loss: PerSample) -> dict[str, Scalar]:
    return bound_metrics(posterior.bound(cross_entropy)) | {"prior_loss": jnp.mean(prior_loss)}
