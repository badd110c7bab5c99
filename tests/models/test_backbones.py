"""NVAE in a VAE: the terms of the bound are the published ones, and its statistics are non-trainable state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgm_jax.arrays import sum_per_sample
from lsgm_jax.autoencoders import backbones
from lsgm_jax.interop.nvae import nvae_variables
from lsgm_jax.models.vae import VAE
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import EMA, make_step
from tests import tiny
from tests.parity.cld import channels_last
from tests.parity.fixture import load
from tests.parity.likelihoods import decoder_of
from tests.parity.nvae import nvae_module

FIXTURE = "lsgm_nvae_c_two_scales_flow"  # a scale beside the prior's, and flows


def published(monkeypatch):
    """The fixture's network as the backbone of a VAE, drawing the noise that the fixture recorded."""
    fixture = load(FIXTURE)
    state = {key.removeprefix("param/"): a for key, a in fixture.arrays.items() if key.startswith("param/")}
    x = jnp.asarray(channels_last(fixture.arrays["in/x"]), jnp.float32)
    module = nvae_module(fixture.spec["hyper_parameters"], state)
    backbone = backbones.Hierarchical(image_shape=x.shape[1:], net=module)
    noises = [channels_last(fixture.arrays[f"in/noise/group{i}"]) for i in range(module.group_count)]
    monkeypatch.setattr(backbones, "_gaussian_noise", lambda key, shapes: [jnp.asarray(n) for n in noises])
    variables = jax.tree.map(jnp.asarray, nvae_variables(state, module, x.shape[1:]))
    params = {"net": variables["params"], "state": {"batch_stats": variables["batch_stats"]}}
    vae = VAE(
        image_shape=x.shape[1:],
        latent_shape=backbone.latent_shape,
        backbone=backbone,
        likelihood=decoder_of(fixture),
    )
    return fixture, vae, params, x


def test_the_bound_has_the_published_terms(monkeypatch):
    fixture, vae, params, x = published(monkeypatch)
    encoded = jax.jit(lambda p: vae.autoencode(p, x, jax.random.key(0), train=False))(params)
    out = {name: fixture.arrays[f"out/eval/{name}"] for name in ("recon_loss", "log_q_total", "log_p_total")}
    latent = encoded.latent
    np.testing.assert_allclose(encoded.reconstruction, out["recon_loss"], rtol=2e-5)
    np.testing.assert_allclose(latent.total_entropy, -out["log_q_total"], rtol=2e-5)
    normal = sum_per_sample(latent.gaussian_cross_entropy) + latent.rest
    np.testing.assert_allclose(normal, -out["log_p_total"], rtol=2e-5)
    groups = vae.backbone.groups_per_scale
    divergence = latent.divergence(latent.gaussian_cross_entropy, groups[0])
    np.testing.assert_allclose(divergence, fixture.arrays["out/eval/kl_per_group"], rtol=1e-4, atol=1e-4)
    top, larger = (channels_last(fixture.arrays[f"out/eval/eps_scale{scale}"]) for scale in (0, 1))
    np.testing.assert_allclose(latent.z_0, top, atol=2e-5 * abs(top).max())
    normal = -jax.scipy.stats.norm.logpdf(larger).sum((1, 2, 3))
    np.testing.assert_allclose(latent.rest, normal, rtol=2e-5)


@pytest.mark.slow
def test_a_training_step_carries_the_published_statistics(monkeypatch):
    """A step whose learning rate is zero moves nothing but the running statistics, in parameters and average."""
    fixture, vae, params, x = published(monkeypatch)
    step = make_step(tiny.at_full_kl(vae.loss), optax.sgd(0.0), EMA(0.5))
    # From step 8 on the average's decay is the full 1/2, with which the mean of a number with itself is exact.
    start = dataclasses.replace(create_state(params, optax.sgd(0.0)), step=jnp.asarray(8))
    state, _ = jax.jit(step)(start, Batch(x), jax.random.key(0))
    expected = fixture.arrays["out/bn_after_train_forward/pre_process.0._ops.0.bn_act.running_mean"]
    for tree in (state.params, state.ema):
        norm = tree["state"]["batch_stats"]["encoder"]["block_0_0"]["branch"]["norm_0"]
        np.testing.assert_allclose(norm["mean"], expected, atol=2e-5 * abs(expected).max())
        jax.tree.map(np.testing.assert_array_equal, tree["net"], params["net"])
