"""The model as a whole: its bound, its gradients, and what it generates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.arrays import Phase
from lsgm_jax.errors import ConfigError
from lsgm_jax.nn.network import Network
from lsgm_jax.nn.unet import UNet
from lsgm_jax.objectives.kl import KLWeight
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.processes.linear import gaussian_eps
from lsgm_jax.solvers.grids import Linear
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler
from tests import tiny


@pytest.fixture(scope="module", params=["vp", "cld"])
def model(request):
    return tiny.model(f"--config.process.name={request.param}", "--config.density.t_min=1e-5")


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def bound(model):
    """`model.bound`, compiled once for all tests."""
    return jax.jit(model.bound)


@pytest.fixture(scope="module")
def gradient(model):
    """The loss's gradient, compiled once for all tests."""
    return jax.jit(jax.grad(model.loss, has_aux=True))


def with_logit(params, value):
    return params | {"mixing_logit": jnp.full_like(params["mixing_logit"], value)}


@pytest.mark.parametrize(
    ("process", "encoder_density"),
    [
        pytest.param("sub_vp", "shared", marks=pytest.mark.slow),
        pytest.param("ve", "shared", marks=pytest.mark.slow),
        pytest.param("geometric_vp", "shared", marks=pytest.mark.slow),
        ("cld", "optimal"),
    ],
)
def test_every_process_trains_samples_and_is_scored(process, encoder_density):
    """Encoder, network and mixing logit learn; bounds are finite; images come back. The process is one field."""
    model = tiny.model(f"--config.process.name={process}", f"--config.encoder_density.name={encoder_density}")
    params = jax.tree.map(lambda leaf: leaf + 0.01, jax.jit(model.init)(jax.random.key(0)))
    gradient = jax.jit(jax.grad(model.loss, has_aux=True))(params, tiny.batch(), jax.random.key(1))
    for part in ("vae", "score_net", "mixing_logit"):
        leaves = jax.tree.leaves(gradient[0][part])
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert any(np.any(np.asarray(leaf)) for leaf in leaves)
    assert np.isfinite(model.bound(params, tiny.batch(), jax.random.key(2)).nelbo).all()
    x, solution = model.sample(
        params, jax.random.key(3), 2, Sampler(method=METHODS["Heun"](), steps=Linear(steps=5), t_min=1e-3)
    )
    assert solution.z_0.shape == (2, 4, 4, 2)
    assert np.isfinite(x).all()


@pytest.mark.parametrize("logit", [-1.0, 2.0])
def test_a_fixed_part_needs_no_share_of_the_normal_prediction(logit):
    """With the Gaussian prediction as the fixed part, a silent network predicts it, whatever its share."""
    model = tiny.model("--config.process.name=cld", "--config.objective.mixed_score=gaussian")
    params = with_logit(jax.tree.map(jnp.zeros_like, jax.jit(model.init)(jax.random.key(0))), logit)
    z_t, t = (
        Phase(*jax.random.normal(jax.random.key(1), (2, 3, *model.latent_shape))),
        jnp.array([0.01, 0.2, 1.0]),
    )
    exact = gaussian_eps(model.prior.process, z_t, t)
    np.testing.assert_allclose(model.prior.eps_net(params)(z_t, t), exact, rtol=1e-6)


def test_a_fixed_part_of_the_velocity_needs_one():
    with pytest.raises(ConfigError, match=r"mixed_score='velocity' is for the process cld, not VP"):
        tiny.model("--config.objective.mixed_score=velocity")


def test_without_the_network_lsgm_is_the_vae(model, params, bound):
    """A mixing logit of -100 leaves the Gaussian prior: the bounds agree to what t_min and alpha(1) cost."""
    batch, key = tiny.batch(), jax.random.key(1)
    lsgm = model.bound(with_logit(params, -100.0), batch, key)
    vae = model.vae.bound(params["vae"], batch, jax.random.split(key, 3)[0])
    np.testing.assert_array_equal(lsgm.entropy, vae.entropy)
    k_vae = jax.random.split(key, 3)[0]
    z_0 = model.vae.autoencode(params["vae"], batch.x, k_vae, train=False).latent.z_0
    standard = 0.5 * jnp.sum(z_0**2 + jnp.log(2 * jnp.pi), axis=(1, 2, 3))
    dims = z_0[0].size
    np.testing.assert_allclose(lsgm.cross_entropy, standard, atol=1e-3 * dims)
    vae_bound, keys = jax.jit(model.vae.bound), [jax.random.key(i) for i in range(40)]
    lsgm_mean = np.mean([bound(with_logit(params, -100.0), batch, key).nelbo for key in keys])
    vae_mean = np.mean([vae_bound(params["vae"], batch, key).nelbo for key in keys])
    assert abs(lsgm_mean - vae_mean) < 0.5


def test_strata_average_to_the_bound(params, bound):
    """Draws that share the time axis between them estimate the same bound as draws that do not."""
    batch = tiny.batch()
    keys = jax.random.split(jax.random.key(2), 64)
    free = np.array([bound(params, batch, key).cross_entropy.mean() for key in keys])
    split = np.array(
        [bound(params, batch, key, Stratum(i, 64)).cross_entropy.mean() for i, key in enumerate(keys)]
    )
    assert abs(free.mean() - split.mean()) < 5 * free.std() / np.sqrt(len(free)) + 0.05


def test_loss_metrics_are_the_bound(model, params, bound):
    """In the mean: the loss's NELBO differs from `bound` by dropout and draws alone."""
    batch = tiny.batch()
    quiet = tiny.model(
        "--config.autoencoder.dropout=0.0", "--config.score.dropout=0.0", "--config.density.t_min=1e-5"
    )
    quiet = dataclasses.replace(quiet, prior=dataclasses.replace(quiet.prior, process=model.prior.process))
    loss = jax.jit(quiet.loss)
    keys = jax.random.split(jax.random.key(3), 48)
    from_loss = np.array([loss(params, batch, key)[1].metrics["nelbo"] for key in keys])
    from_bound = np.array([bound(params, batch, key).nelbo.mean() for key in keys])
    stderr = np.hypot(from_loss.std(), from_bound.std()) / np.sqrt(len(keys))
    assert abs(from_loss.mean() - from_bound.mean()) < 5 * stderr + 0.01


def test_every_parameter_learns(params, gradient):
    """One backward pass reaches encoder, decoder, network and mixing logit."""
    # Zero-initialised output layers block the gradient of what lies before them; nudge them off zero.
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)
    grads = gradient(params, tiny.batch(), jax.random.key(4), KLWeight(1.0))[0]
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not np.any(np.asarray(leaf)) and leaf.size > 0
    ]
    assert dead == []


def test_kl_coefficient_concerns_the_vae_alone(params, gradient):
    """The prior's and the decoder's gradients do not see it, control variate included; the encoder's does."""
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)  # off the zeros that would block gradients
    full = gradient(params, tiny.batch(), jax.random.key(5), KLWeight(1.0))[0]
    half = gradient(params, tiny.batch(), jax.random.key(5), KLWeight(0.5))[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        full["score_net"],
        half["score_net"],
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        full["vae"]["decoder"],
        half["vae"]["decoder"],
    )
    encoders = jax.tree.leaves(full["vae"]["encoder"]), jax.tree.leaves(half["vae"]["encoder"])
    assert any(not np.allclose(a, b, rtol=1e-2) for a, b in zip(*encoders, strict=True))


def test_samples_of_the_normal_prior_are_the_vaes(model, params):
    """Without the network the ODE leaves the Gaussian prior a Gaussian: latents of variance one."""
    sampler = Sampler(steps=Adaptive(rtol=1e-4, atol=1e-4), t_min=1e-4)
    x, solution = model.sample(with_logit(params, -100.0), jax.random.key(6), 64, sampler)
    assert x.shape == (64, 8, 8, 1)
    assert np.abs(x).max() <= 1.0
    assert abs(float(solution.z_0.var()) - 1.0) < 0.1
    np.testing.assert_array_equal(x, model.vae.decode(params["vae"], solution.z_0, jax.random.key(0)))


def test_dropout_is_on_in_training_only(model, params):
    batch = tiny.batch()
    first, second = (
        model.vae.autoencode(params["vae"], batch.x, jax.random.key(0), train=False) for _ in range(2)
    )
    np.testing.assert_array_equal(first.reconstruction, second.reconstruction)
    nudged = jax.tree.map(lambda leaf: leaf + 0.01, params["vae"])
    trained = model.vae.autoencode(nudged, batch.x, jax.random.key(0), train=True).latent.z_0
    evaluated = model.vae.autoencode(nudged, batch.x, jax.random.key(0), train=False).latent.z_0
    assert not np.allclose(trained, evaluated)


def test_the_unet_sees_time_and_every_position():
    net = Network(UNet(out_channels=3, channels=(8, 8), blocks=1, attention=(4,), dropout=0.0))
    z_t, t = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), jnp.array([0.1, 0.1])
    params, apply = jax.jit(net.init)(jax.random.key(1), z_t, t), jax.jit(net.apply)
    np.testing.assert_array_equal(apply(params, z_t, t), 0.0)  # a fresh network predicts nothing
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    output = apply(params, z_t, t)
    later = apply(params, z_t, jnp.array([0.1, 0.7]))
    np.testing.assert_allclose(output[0], later[0], rtol=1e-5)  # samples do not see each other
    assert not np.allclose(output[1], later[1], rtol=1e-2)
    reach = jax.jit(jax.grad(lambda z: net.apply(params, z, t)[0, 0, 0, 0]))(z_t)[0]
    assert np.all(np.any(np.asarray(reach) != 0.0, axis=-1))
