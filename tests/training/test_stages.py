"""Each stage trains by the fields of its config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.config.factory import experiment
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.kl import KLWeight
from lsgm_jax.objectives.time_densities import Optimal
from lsgm_jax.processes.linear import gaussian_eps
from lsgm_jax.training.recipes.recipe import Data
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import Context, make_step
from tests import tiny, toy

SEPARATE = {"encoder_density": Optimal(t_min=0.01)}
KL = ("start=0.2", "end=0.6", "constant=10", "steps=20")


def stages(*overrides, model=None, training=None):
    """Returns the stages by name; overrides come without "--config."."""
    config = tiny.config("", *(f"--config.{override}" for override in overrides))
    images = Data(training or toy.Samples(), Batch(np.zeros((0,))), config.data.batch_size)
    recipe = dataclasses.replace(experiment(config).training, model=model or toy.lsgm())
    return {stage.name: stage for stage in recipe.stages(images)}


def fresh(model, seed=0):
    return jax.jit(model.init)(jax.random.key(seed))


def train(stage, params, steps=3):
    memory = stage.memory(params, jax.random.key(1))
    state = create_state(params, stage.optimiser, memory)
    step = jax.jit(make_step(stage.loss, stage.optimiser, stage.ema))
    for _ in range(steps):
        state, metrics = step(state, toy.batch(), jax.random.key(2))
    return state, metrics


def moved(before, after):
    """Returns the paths of the leaves that differ."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(np.array_equal, before, after))
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, same in leaves if not same}


# The KL term


def coefficient(stage, params, step):
    """Returns the coefficient of KL(q || p) in the loss of this step."""
    context = Context(jax.random.key(3), jnp.asarray(step, jnp.int32), params, {})
    value, aux = jax.jit(stage.loss)(params, toy.batch(), context)
    of_images = value - aux.metrics.get("prior_loss", 0.0) - aux.metrics["reconstruction"]
    return of_images / (aux.metrics["nelbo"] - aux.metrics["reconstruction"])


@pytest.mark.parametrize(("name", "section"), [("vae", "vae_kl"), ("joint", "joint_kl")])
def test_each_stage_has_its_kl_schedule(name, section):
    """The coefficient is constant, rises linearly, and stays at its end, even if that is below one."""
    model = toy.lsgm(**SEPARATE)
    params, stage = fresh(model), stages(*(f"{section}.{field}" for field in KL), model=model)[name]
    params = params if name == "joint" else params["vae"]
    found = [coefficient(stage, params, step) for step in (0, 10, 20, 30, 1000)]
    np.testing.assert_allclose(found, [0.2, 0.2, 0.4, 0.6, 0.6], rtol=1e-3)


BALANCING = [(0.5, True, True), (1.0, True, False), (0.5, False, False)]


@pytest.mark.parametrize(("coefficient_now", "balanced", "balancing"), BALANCING)
def test_groups_are_balanced_by_their_kl_while_the_coefficient_is_below_one(
    coefficient_now, balanced, balancing
):
    """Compares with the loss of the first stage written out; the balancing weights take no gradient."""
    vae, key = toy.lsgm().vae, jax.random.key(3)
    params = fresh(toy.lsgm())["vae"]

    def by_hand(params):
        encoded = vae.autoencode(params, toy.batch().x, key, train=True)
        divergence = encoded.latent.gaussian_cross_entropy - encoded.latent.entropy
        groups = divergence.reshape(-1, toy.SIDE**2, 2, toy.CHANNELS // 2).sum((1, 3))
        held = jax.lax.stop_gradient(jnp.abs(groups).mean(0) + 0.01)  # two groups of one size
        weights = held / held.mean() if balancing else jnp.ones(2)
        return (encoded.reconstruction + coefficient_now * groups @ weights).mean()

    def ours(params):
        return vae.loss(params, toy.batch(), key, KLWeight(jnp.asarray(coefficient_now), balanced))[0]

    values = [jax.jit(jax.value_and_grad(loss))(params) for loss in (ours, by_hand)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *values)


def test_the_joint_stage_balances_groups_too():
    """With a separate t for the encoder (Algorithm 2); the gradient of the prior does not change."""
    model = toy.lsgm(**SEPARATE)
    params, gradients = fresh(model), []
    for balanced in (False, True):
        fields = ("joint_kl.start=0.5", f"joint_kl.balanced={balanced}", "encoder_density.name=optimal")
        stage = stages(*fields, model=model)["joint"]
        context = Context(jax.random.key(3), jnp.asarray(0, jnp.int32), params, {})
        gradients.append(jax.jit(jax.grad(stage.loss, has_aux=True))(params, toy.batch(), context)[0])
    plain, balanced = gradients
    assert not np.allclose(plain["vae"]["net"]["encode"], balanced["vae"]["net"]["encode"], rtol=1e-2)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(same, plain["score_net"], balanced["score_net"])


# The EMA


def test_the_published_runs_have_an_ema_of_the_prior_alone():
    """The EMA of the VAE is its current value in both stages if `ema_vae` is off; otherwise it lags behind."""
    model = toy.lsgm()
    params = fresh(model)
    for ema_vae in (True, False):
        both = stages(f"train.ema_vae={ema_vae}", "train.ema_warmup=False", model=model)
        state, _ = train(both["vae"], params["vae"])
        assert moved(params["vae"], state.params) == {
            "net/encode",
            "net/log_std",
            "net/decode",
            "state/mean",
        }
        lagging = moved(state.params, state.ema)
        assert lagging == ({"net/encode", "net/log_std", "net/decode"} if ema_vae else set())
        state, _ = train(both["joint"], params)
        assert any(moved(state.params["vae"], state.ema["vae"])) == ema_vae
        assert "out/kernel" in moved(state.params["score_net"], state.ema["score_net"])


def test_without_warmup_the_ema_has_its_decay_from_the_first_step():
    model = toy.lsgm()
    stage = stages("train.ema_warmup=False", "train.ema_decay=0.9999", model=model)["joint"]
    assert (stage.ema.decay, stage.ema.warmup) == (0.9999, False)
    warm = stages("train.ema_decay=0.9999", model=model)["joint"]
    assert warm.ema.warmup


def test_the_encoder_uses_the_ema_of_the_prior():
    """The gradient of the VAE is that at the EMA parameters of the prior; that of the prior does not change."""
    model = toy.lsgm(encoder_uses_ema=True, **SEPARATE)
    now, before = fresh(model, 0), fresh(model, 1)
    past = {**before, "vae": now["vae"]}
    gradient = jax.jit(jax.grad(stages(model=model)["joint"].loss, has_aux=True))

    def at(params, ema):
        context = Context(jax.random.key(3), jnp.asarray(500, jnp.int32), ema, {})
        return gradient(params, toy.batch(), context)[0]

    with_ema, own, at_past = at(now, past), at(now, now), at(past, past)
    assert moved(with_ema["vae"], at_past["vae"]) == set()
    assert "net/encode" in moved(with_ema["vae"], own["vae"])
    assert moved(with_ema["score_net"], own["score_net"]) == set()
    assert "out/kernel" in moved(with_ema["score_net"], at_past["score_net"])


# Penalties


def test_each_network_has_its_penalty():
    """The first stage penalises the VAE, the joint one both, with a frozen VAE the prior; each by its own weight."""
    model = toy.lsgm()
    params = fresh(model)
    weights = ["vae_penalty.weight=0.1", "joint_vae_penalty.weight=0.2", "joint_prior_penalty.weight=0.3"]
    both = stages(*weights, model=model)
    frozen = stages(*weights, "train.freeze_vae=True", model=model)["joint"]
    singular = np.linalg.norm(params["vae"]["net"]["decode"])
    of_vae = singular + np.abs(params["vae"]["net"]["encode"]).max()
    of_prior = np.linalg.norm(params["score_net"]["in"]["kernel"][0, 0], 2) + 1.0
    for stage, tree, penalties in (
        (both["vae"], params["vae"], {"vae_penalty": 0.1 * of_vae}),
        (both["joint"], params, {"vae_penalty": 0.2 * of_vae, "prior_penalty": 0.3 * of_prior}),
        (frozen, params, {"prior_penalty": 0.3 * of_prior}),
    ):
        state, metrics = train(stage, tree, steps=1)
        found = {name: value for name, value in metrics.items() if name.endswith("_penalty")}
        assert found.keys() == penalties.keys()
        assert state.memory.keys() == {name.removesuffix("_penalty") for name in penalties}
        for name, value in penalties.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-3)


# A frozen VAE


def test_a_frozen_vae_does_not_change():
    """Bit for bit, batch statistics included, whatever the weight decay; the prior learns."""
    model = toy.lsgm()
    decay = ["joint_vae.weight_decay=0.5", "joint_vae.decay_all=True", "joint_prior.weight_decay=0.5"]
    params = fresh(model)
    state, _ = train(stages(*decay, "train.freeze_vae=True", model=model)["joint"], params)
    for tree in (state.params, state.ema):
        assert moved(params["vae"], tree["vae"]) == set()
        assert {"score_net", "mixing_logit"} <= {path.split("/")[0] for path in moved(params, tree)}
    state, _ = train(stages(*decay, model=model)["joint"], params)
    assert {"net/encode", "state/mean"} <= moved(params["vae"], state.params["vae"])


def test_a_frozen_vae_encodes_as_in_evaluation():
    """The loss of the prior alone uses running batch statistics, and its z_0 is that of the bound."""
    model = toy.lsgm()
    params, key = fresh(model), jax.random.key(3)
    _, aux = jax.jit(model.prior_loss)(params, toy.batch(), key)
    bound = jax.jit(model.vae.bound)(params["vae"], toy.batch(), jax.random.split(key, 3)[0])
    np.testing.assert_allclose(aux.metrics["reconstruction"], bound.reconstruction.mean(), rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["entropy"], bound.entropy.mean(), rtol=1e-5)


# Inactive channels


def quiet(params, channels=(1,)):
    """Makes these channels N(0, 1) for every image, so that the encoder transmits nothing in them."""
    net = params["vae"]["net"]
    at = np.isin(np.arange(toy.CHANNELS), channels)
    net = net | {"encode": jnp.where(at, 0.0, net["encode"]), "log_std": jnp.where(at, 0.0, net["log_std"])}
    return params | {"vae": params["vae"] | {"net": net}}


@pytest.fixture(scope="module")
def partly_active():
    """Model, stage, and parameters before and after `Stage.adapt`."""
    model = toy.lsgm(inactive_kl=0.1)
    params = quiet(fresh(model))
    stage = stages("data.batch_size=8", model=model, training=toy.Samples(20))["joint"]
    return model, stage, params, stage.adapt(params)


def test_inactive_channels_are_found(partly_active):
    _, _, before, after = partly_active
    np.testing.assert_array_equal(after["state"]["active"], [1, 0, 1, 1])
    np.testing.assert_array_equal(
        after["mixing_logit"], np.where([1, 0, 1, 1], before["mixing_logit"], -15.0)
    )
    assert moved(before, after) == {"mixing_logit", "state/active"}


def test_the_threshold_of_inactive_channels_is_their_kl_in_nats(partly_active):
    """Thresholds between the closed forms of two channels separate them."""
    _, _, params, _ = partly_active
    net, x = params["vae"]["net"], toy.Samples(20).x
    mean, log_std = x @ np.asarray(net["encode"]), np.asarray(net["log_std"])
    each = 0.5 * (mean**2 + np.exp(2 * log_std) - 1.0) - log_std
    held = np.sort(each.sum((1, 2)).mean(0))
    for index in range(1, toy.CHANNELS):
        model = toy.lsgm(inactive_kl=0.5 * float(held[index - 1] + held[index]))
        stage = stages("data.batch_size=8", model=model, training=toy.Samples(20))["joint"]
        assert int(stage.adapt(params)["state"]["active"].sum()) == toy.CHANNELS - index


def test_the_network_does_not_see_inactive_channels(partly_active):
    """Their prediction is the fixed part; the prediction of the others does not change."""
    model, _, before, after = partly_active
    z_t, t = (
        jax.random.normal(jax.random.key(4), (8, toy.SIDE, toy.SIDE, toy.CHANNELS)),
        jnp.linspace(0.1, 0.9, 8),
    )
    predict = jax.jit(lambda params, z_t: model.prior.eps_net(params)(z_t, t))
    shifted = z_t.at[..., 1].add(3.0)
    others = np.array([0, 2, 3])
    np.testing.assert_array_equal(predict(after, z_t)[..., others], predict(after, shifted)[..., others])
    assert not np.allclose(
        predict(before, z_t)[..., others], predict(before, shifted)[..., others], atol=1e-4
    )
    fixed = gaussian_eps(model.prior.process, z_t, t)
    np.testing.assert_allclose(predict(after, z_t)[..., 1], fixed[..., 1], atol=1e-5)
    silent = z_t.at[..., 1].set(0.0)
    np.testing.assert_array_equal(predict(after, z_t)[..., others], predict(before, silent)[..., others])


def test_the_mask_of_active_channels_is_constant_in_training(partly_active):
    _, stage, _, after = partly_active
    state, _ = train(stage, after)
    for tree in (state.params, state.ema):
        np.testing.assert_array_equal(tree["state"]["active"], [1, 0, 1, 1])
        assert {"mixing_logit", "score_net/out/kernel"} <= moved(after, tree)


def test_a_threshold_of_zero_does_not_change_the_parameters():
    model = toy.lsgm()
    params = quiet(fresh(model))
    assert params.keys() == {"vae", "score_net", "mixing_logit"}
    assert stages(model=model)["joint"].adapt(params) is params
