"""Every way to train encoder and prior together: balanced groups or not, shared times or not, any weighting."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.arrays import sum_per_sample
from lsgm_jax.objectives import weightings
from lsgm_jax.objectives.elbo import sample_draw
from lsgm_jax.objectives.kl import KLWeight
from lsgm_jax.objectives.time_densities import Optimal, Uniform
from lsgm_jax.processes import linear
from tests import toy

KEY = jax.random.key(3)
DENSITY = Uniform(t_min=0.01)


def gradient(model, params, kl, ema_params=None):
    loss = lambda params: model.loss(params, toy.batch(), KEY, kl, ema_params)[0]
    return jax.jit(jax.grad(loss))(params)


def close(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), left, right)


def plain_losses(model, weighting, coefficient):
    """The two losses as functions of all parameters: that of the encoder, balanced, and that of the prior."""
    k_vae, k_prior, *_ = jax.random.split(KEY, 5)
    process, x = model.prior.process, toy.batch().x

    def terms(params):
        encoded = model.vae.autoencode(params["vae"], x, k_vae, train=True)
        latent, z_0 = encoded.latent, encoded.latent.z_0
        t, eps = sample_draw(DENSITY, model.prior.objective.spread, process, k_prior, z_0)
        error2 = (eps - model.prior.eps_net(params)(linear.perturb(process, z_0, t, eps), t)) ** 2
        return encoded, latent, error2, t

    def encoder_loss(params):
        encoded, latent, error2, t = terms(params)
        start = linear.noise_entropy(process, jnp.asarray(DENSITY.t_min))
        w_q = weightings.likelihood(process, t) * (1.0 - DENSITY.t_min)
        kl = w_q[:, None, None, None] * error2 + start - latent.entropy
        groups = kl.reshape(-1, toy.SIDE**2, 2, toy.CHANNELS // 2).sum((1, 3))
        held = jax.lax.stop_gradient(jnp.abs(groups).mean(0) + 0.01)  # two groups of one size
        return (encoded.reconstruction + coefficient * groups @ (held / held.mean())).mean()

    def prior_loss(params):
        *_, error2, t = terms(params)
        return (weighting(process, t) * (1.0 - DENSITY.t_min) * sum_per_sample(error2)).mean()

    return encoder_loss, prior_loss


@pytest.mark.parametrize("weighting", [weightings.unweighted, weightings.likelihood])
def test_groups_are_balanced_at_shared_times(x64, weighting):
    """The VAE has the gradient of its balanced loss, the prior that of its own, both at the same times."""
    model = toy.lsgm(prior_weighting=weighting, density=DENSITY, control_variate=False)
    params = model.init(jax.random.key(0))
    found = gradient(model, params, KLWeight(0.5, balanced=True))
    encoder_loss, prior_loss = plain_losses(model, weighting, 0.5)
    close(found["vae"]["net"], jax.jit(jax.grad(encoder_loss))(params)["vae"]["net"])
    expected = jax.jit(jax.grad(prior_loss))(params)
    close(
        [found[name] for name in ("score_net", "mixing_logit")],
        [expected["score_net"], expected["mixing_logit"]],
    )


def test_without_weights_two_backward_passes_are_one(x64):
    """At a coefficient of one groups are not balanced: the two passes at shared times then equal Algorithm 3."""
    model = toy.lsgm(density=DENSITY)
    params = model.init(jax.random.key(0))
    close(gradient(model, params, KLWeight(1.0, balanced=True)), gradient(model, params, KLWeight(1.0)))


PUBLISHED = (weightings.likelihood, weightings.reweighted, weightings.unweighted, weightings.rescaled)
TIMES = {
    "shared": {},
    "separate": {"encoder_density": Optimal(t_min=0.01)},
    "separate, EMA": {"encoder_density": DENSITY, "encoder_uses_ema": True},
}


@pytest.mark.parametrize(("balanced", "times"), list(itertools.product((False, True), TIMES)))
def test_every_combination_builds_and_differentiates(balanced, times):
    for weighting in PUBLISHED:
        model = toy.lsgm(prior_weighting=weighting, **TIMES[times])
        params = jax.eval_shape(model.init, jax.random.key(0))
        kl = KLWeight(0.5, balanced)
        like = jax.eval_shape(lambda params, ema: gradient(model, params, kl, ema), params, params)  # noqa: B023
        assert jax.tree.structure(like) == jax.tree.structure(params)
