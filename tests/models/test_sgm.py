"""Models of the data themselves: exact where the score is known, and the published mixed score."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.arrays import Phase
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.errors import ConfigError
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.score_matching import l2
from lsgm_jax.processes.cld import velocity_eps
from lsgm_jax.processes.linear import gaussian_eps
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.likelihood import Divergence
from lsgm_jax.solvers.sampler import Sampler
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import EMA, make_step
from tests import tiny
from tests.tiny import ROOT

TOY = str(ROOT / "configs" / "cld_toy.py") + ":quick"
SAMPLER = Sampler(steps=Adaptive(rtol=1e-4, atol=1e-4), t_min=1e-4)


def toy(*overrides):
    return experiment(load_config(TOY, list(overrides))).model


def fourier():
    """CLD on tiny images, with the Fourier features of the published network."""
    tiny = ["--config.data.image_shape=(8,8,3)", "--config.score.channel_mult=(1,)"]
    return experiment(load_config(str(ROOT / "configs" / "cld_cifar10.py") + ":quick", tiny)).model


def silent(model):
    """Parameters of a network that says nothing."""
    return jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))


@pytest.mark.parametrize("process", ["vp", "cld"])
def test_normal_data_are_known_by_the_fixed_part(process):
    """With the exact score of a standard Gaussian: its density by the bounds, and its variance in samples."""
    model = toy(f"--config.process.name={process}", "--config.objective.mixed_score=gaussian")
    params, x = silent(model), jax.random.normal(jax.random.key(1), (64, 2))
    exact = 0.5 * np.sum(np.asarray(x) ** 2, axis=-1) + np.log(2.0 * np.pi)
    bound = jax.jit(model.bound)(params, Batch(x), jax.random.key(2))
    np.testing.assert_allclose(bound.nelbo.mean(), exact.mean(), atol=2e-3)
    score, divergence = jax.jit(model.ode_bound, static_argnums=(3, 4)), Divergence(name="exact")
    ode = score(params, Batch(x), jax.random.key(3), dataclasses.replace(SAMPLER, t_min=1e-6), divergence)
    np.testing.assert_allclose(ode.nelbo, exact, atol=5e-3)
    samples, _ = jax.jit(model.sample, static_argnums=(2, 3))(params, jax.random.key(4), 4000, SAMPLER)
    np.testing.assert_allclose(np.cov(samples.T), np.eye(2), atol=5.0 * np.sqrt(2.0 / 4000))


def test_grey_levels_cost_what_their_bins_hold():
    """The bound of a grid of values is that of the density less the logarithm of a bin, per dimension."""
    model = toy()
    params, batch, key = model.init(jax.random.key(0)), Batch(jnp.zeros((8, 2))), jax.random.key(1)
    nelbo = lambda model: jax.jit(model.bound)(params, batch, key).nelbo
    fine = dataclasses.replace(model, bin_width=1e-6)
    np.testing.assert_allclose(nelbo(fine), nelbo(model) - 2.0 * np.log(1e-6), atol=2e-3, rtol=1e-4)


def test_the_mixed_score_is_the_published_one():
    """The prediction is the fixed part, v L_vv / S_vv, plus the network's output."""
    model = toy()
    z_t = Phase(jnp.ones((3, 2)), jnp.array([[1.0, -2.0]] * 3))
    t = jnp.array([0.01, 0.3, 1.0])
    eps_hat = model.prior.eps_net(silent(model))(z_t, t)
    np.testing.assert_array_equal(eps_hat, velocity_eps(model.prior.process, z_t, t))
    assert np.all(np.asarray(eps_hat * z_t.v) > 0.0)


def test_a_mixed_score_of_the_velocity_needs_one():
    with pytest.raises(ConfigError, match=r"mixed_score='velocity' is for the process cld, not VP"):
        toy("--config.process.name=vp")


def test_plain_matching_needs_a_velocity_to_know():
    for process in ("--config.process.name=vp", "--config.process.v0_var_scale=0.0"):
        with pytest.raises(
            ConfigError, match=r"matching='plain' is for the process cld with v0_var_scale > 0"
        ):
            toy("--config.objective.matching=plain", "--config.objective.mixed_score=none", process)


@pytest.mark.parametrize("matching", ["hybrid", "plain"])
def test_matching_decides_about_training_and_not_about_samples(matching):
    """A network that says nothing leaves the fixed part, in the noise of the process: samples do not see the kernel."""
    model = toy(f"--config.objective.matching={matching}", "--config.objective.mixed_score=gaussian")
    params, x = silent(model), jax.random.normal(jax.random.key(1), (64, 2))
    z_t, t = Phase(x, -x), jnp.linspace(1e-3, 1.0, 64)
    exact = gaussian_eps(model.prior.process, z_t, t)
    np.testing.assert_array_equal(model.prior.eps_net(params)(z_t, t), exact)
    loss = lambda params: model.loss(params, Batch(x), jax.random.key(2))[0]
    assert np.isfinite(jax.jit(jax.grad(loss))(params)["score_net"]["Dense_0"]["kernel"]).all()


@pytest.mark.parametrize("process", ["discrete_vp", "cld"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_error_of_the_data_is_that_of_the_noise_under_its_weighting(norm, process):
    """A network that says nothing predicts data at the origin, which it misses by the data, in either norm."""
    section = ["process.name=" + process, "density.name=timesteps", "objective.prediction=x_0"]
    section += [f"objective.norm={norm}", "objective.weighting=x_0", "objective.mixed_score=none"]
    model = toy(*(f"--config.{line}" for line in section))
    params, x = silent(model), jax.random.normal(jax.random.key(1), (64, 2))
    loss, aux = jax.jit(model.loss)(params, Batch(x), jax.random.key(2))
    size = np.abs(np.asarray(x)) ** (1 if norm == "l1" else 2)
    np.testing.assert_allclose(loss, size.sum(axis=-1).mean(), rtol=1e-4)
    objective = dataclasses.replace(model.prior.objective, norm=l2)
    squared = dataclasses.replace(model, prior=dataclasses.replace(model.prior, objective=objective))
    of_squares = jax.jit(squared.loss)(params, Batch(x), jax.random.key(2))[1]
    jax.tree.map(
        np.testing.assert_array_equal, aux.metrics, of_squares.metrics
    )  # a bound does not know the norm


@pytest.mark.parametrize(
    ("process", "setting", "message"),
    [
        (
            "vp",
            "objective.prediction=x0",
            "objective.prediction='x0' is none of eps, x_0, v, velocity; did you mean 'x_0'",
        ),
        ("vp", "objective.norm=l3", "objective.norm='l3' is none of l2, l1"),
        (
            "cld",
            "objective.prediction=v",
            "objective.prediction: v is for processes of one coordinate, not for CLD",
        ),
        (
            "cld",
            "objective.weighting=v",
            "objective.weighting: v is for processes of one coordinate, not for CLD",
        ),
        (
            "discrete_vp",
            "process.schedule=cosin",
            "config.process: schedule='cosin' is none of linear, cosine",
        ),
        ("discrete_vp", "process.first=0.5", "config.process: first=0.5, last=0.0195: variances grow"),
        ("vp", "density.steps=1", "config.density: steps=1: give at least two"),
    ],
)
def test_bad_objectives_get_one_line(process, setting, message):
    density = "timesteps" if "density" in setting else "uniform"
    lines = ("objective.mixed_score=none", f"process.name={process}", f"density.name={density}", setting)
    with pytest.raises(ConfigError, match=message) as error:
        toy(*(f"--config.{line}" for line in lines))
    assert "\n" not in str(error.value)


def test_a_density_of_a_weighting_that_the_process_lacks_gets_one_line():
    lines = ("process.name=cld", "density.name=optimal", "density.weighting=v")
    with pytest.raises(
        ConfigError, match=r"config\.density: v is for processes of one coordinate, not for CLD"
    ):
        toy(*(f"--config.{line}" for line in lines))


@pytest.mark.parametrize("chosen", ["mixed_score=gaussian", "matching=plain"])
def test_only_noise_is_added_to_noise(chosen):
    lines = ["objective.mixed_score=none", f"objective.{chosen}", "objective.prediction=x_0"]
    with pytest.raises(
        ConfigError, match=rf"config\.objective\.{chosen[:5]}.* predicts noise, not x_0: set it to"
    ):
        toy(*(f"--config.{line}" for line in lines))


def test_networks_are_for_their_kind_of_data():
    with pytest.raises(
        ConfigError, match=r"config.score: this network is for maps .*not for latents of shape \(2,\)"
    ):
        toy("--config.score.name=unet")


def test_training_moves_the_network_but_not_its_frequencies():
    """Fourier frequencies are non-trainable state: the same bits after steps with weight decay, and in the EMA."""
    model = fourier()
    params = jax.jit(model.init)(jax.random.key(0))
    frequencies = params["score_net"]["state"]["constants"]["FourierFeatures_0"]["frequencies"]
    config = load_config(TOY, ["--config.optimiser.weight_decay=0.1"])
    optimiser = experiment(config).training.optimiser
    step = jax.jit(make_step(tiny.at_full_kl(model.loss), optimiser, EMA(0.9)))
    state = create_state(params, optimiser)
    batch = Batch(jax.random.uniform(jax.random.key(1), (4, 8, 8, 3), minval=-1.0))
    for _ in range(2):
        state, metrics = step(state, batch, jax.random.key(2))
    for tree in (state.params, state.ema):
        kept = tree["score_net"]["state"]["constants"]["FourierFeatures_0"]["frequencies"]
        np.testing.assert_array_equal(kept, frequencies)
    assert np.isfinite(metrics["loss"])
    assert not np.array_equal(
        state.params["score_net"]["stem"]["kernel"], params["score_net"]["stem"]["kernel"]
    )


def test_frequencies_are_the_ones_given():
    """Other frequencies in the parameters give another output: a converted checkpoint brings its own."""
    model = fourier()
    params = jax.tree.map(lambda leaf: leaf + 0.05, jax.jit(model.init)(jax.random.key(0)))
    z_t, t = Phase(*jnp.ones((2, 1, 8, 8, 3))), jnp.array([0.5])
    apply = jax.jit(lambda params: model.prior.eps_net(params)(z_t, t))
    other = jax.tree.map(lambda leaf: leaf, params)
    other["score_net"]["state"] = jax.tree.map(lambda leaf: leaf + 1.0, other["score_net"]["state"])
    assert not np.allclose(apply(params), apply(other))
