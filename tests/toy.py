"""An LSGM whose networks are a few matrices: everything the stages do, and nothing for the compiler to chew on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lsgm_jax.arrays import Times, expand, mean_over_devices, sum_per_sample
from lsgm_jax.autoencoders.backbones import Pass
from lsgm_jax.autoencoders.gaussian import Gaussian
from lsgm_jax.autoencoders.likelihoods import Bernoulli
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.score_model import ScoreModel
from lsgm_jax.models.vae import VAE
from lsgm_jax.nn.layers import Maps
from lsgm_jax.nn.network import Network
from lsgm_jax.nn.penalised import Penalised
from lsgm_jax.objectives.bound import Batch, Latent
from lsgm_jax.objectives.elbo import Objective
from lsgm_jax.objectives.time_densities import Uniform
from lsgm_jax.objectives.weightings import unweighted
from lsgm_jax.processes.vp import VP

SIDE, CHANNELS = 4, 4  # of images, and of latents, which have two groups


@dataclasses.dataclass(frozen=True)
class Linear:
    """Encoder and decoder are matrices between channels, with a running mean of the features in between.

    Parameters: {"net", "state"}, as NVAE has them.
    """

    @property
    def groups_per_scale(self):
        return (2,)

    def init(self, key):
        keys = jax.random.split(key, 2)
        net = {
            "encode": jax.random.normal(keys[0], (1, CHANNELS)),
            "log_std": jnp.linspace(-1.0, 0.0, CHANNELS),
            "decode": jax.random.normal(keys[1], (CHANNELS, 1)),
        }
        return {"net": net, "state": {"mean": jnp.zeros(1)}}

    def autoencode(self, params, x, key, *, train):
        net, running = params["net"], params["state"]["mean"]
        mean = x @ net["encode"]
        posterior = Gaussian(mean, jnp.broadcast_to(net["log_std"], mean.shape))
        z_0 = posterior.sample(key)
        features = z_0 @ net["decode"] + running
        none = jnp.zeros((len(x), 0))
        latent = Latent(
            z_0,
            posterior.entropy(),
            posterior.cross_entropy_to_standard(),
            none,
            none,
            sum_per_sample(posterior.log_density(z_0)),
        )
        moved = {"state": {"mean": 0.9 * running + 0.1 * mean_over_devices(jnp.mean(features))[None]}}
        held = Penalised({"decode": net["decode"]}, {"encode": net["encode"][0]})
        return Pass(latent, features, moved if train else {}, held)

    def decode(self, params, z_0, key):
        return z_0 @ params["net"]["decode"] + params["state"]["mean"]


class Score(nn.Module):
    """Every prediction sees all channels of its pixel, and the time."""

    @nn.compact
    def __call__(self, z_t: Maps, t: Times, *, deterministic: bool) -> Maps:
        times = jnp.broadcast_to(expand(t, z_t), (*z_t.shape[:-1], 1))
        h = jnp.tanh(nn.Conv(8, (1, 1), name="in")(jnp.concatenate([z_t, times], axis=-1)))
        return nn.Dense(z_t.shape[-1], name="out")(nn.RMSNorm(name="norm")(h))


def lsgm(inactive_kl=0.0, **objective):
    """The model; `objective` are fields of the `Objective`."""
    fields = dict(prior_weighting=unweighted, density=Uniform(t_min=0.01)) | objective
    vae = VAE(
        image_shape=(SIDE, SIDE, 1),
        latent_shape=(SIDE, SIDE, CHANNELS),
        backbone=Linear(),
        likelihood=Bernoulli(),
    )
    prior = ScoreModel(
        shape=vae.latent_shape,
        process=VP(),
        net=Network(Score()),
        objective=Objective(**fields),
        mixing_logit_init=-3.0,
        inactive_kl=inactive_kl,
    )
    return LSGM(vae=vae, prior=prior)


class Samples:
    """Binary images, as the data pipeline has them."""

    spec, in_memory, classes = None, True, ()

    def __init__(self, count=8, seed=0):
        on = np.random.default_rng(seed).random((count, SIDE, SIDE, 1)) < 0.5
        self.x = np.where(on, 1.0, -1.0).astype(np.float32)

    def __len__(self):
        return len(self.x)

    def batch(self, indices, rng=None, rows=slice(None)):
        return {"x": self.x[indices[rows]]}

    def label(self, index):
        return None

    def captions(self, index):
        return None


def batch(count=8, seed=0):
    return Batch(jnp.asarray(Samples(count, seed).x))
