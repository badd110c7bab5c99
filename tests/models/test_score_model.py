"""What holds for the score model of every kind of model: prediction types, and a process among the parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lsgm_jax.models.score_model import ScoreModel
from lsgm_jax.models.sgm import SGM
from lsgm_jax.nn.network import Network
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.elbo import Objective
from lsgm_jax.objectives.time_densities import Uniform
from lsgm_jax.objectives.weightings import likelihood
from lsgm_jax.processes.linear import gaussian_eps
from lsgm_jax.processes.predictions import PREDICTIONS
from lsgm_jax.processes.vp import VP
from lsgm_jax.solvers.grids import Linear
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler
from tests import tiny, toy


class Scaled(nn.Module):
    """A constant times the input."""

    @nn.compact
    def __call__(self, z_t, t, *, deterministic):
        return self.param("scale", nn.initializers.constant(0.3), ()) * z_t


def sgm(process):
    objective = Objective(prior_weighting=likelihood, density=Uniform(t_min=0.1), control_variate=False)
    prior = ScoreModel(shape=(2,), process=process, net=Network(Scaled()), objective=objective)
    return SGM(prior=prior)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_an_lsgm_takes_every_prediction(x64, kind):
    """A silent network predicts no noise, no data, no v, no velocity: the noise that this means, mixed as published."""
    model = toy.lsgm()
    prior = dataclasses.replace(model.prior, prediction=PREDICTIONS[kind])
    params = jax.tree.map(jnp.zeros_like, prior.init(jax.random.key(0)))  # a share of a half
    z_t, t = jax.random.normal(jax.random.key(1), (5, *prior.shape)), jnp.linspace(0.1, 0.9, 5)
    meant = PREDICTIONS[kind](prior.process, z_t, t, jnp.zeros_like(z_t))
    mixed = 0.5 * gaussian_eps(prior.process, z_t, t) + 0.5 * meant
    np.testing.assert_allclose(prior.eps_net(params)(z_t, t), mixed, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["x_0", "velocity"])
def test_the_prediction_of_an_lsgm_is_a_field_of_its_config(kind):
    model = tiny.model(f"--config.objective.prediction={kind}")
    assert model.prior.prediction is PREDICTIONS[kind]


def test_a_process_among_the_parameters_takes_the_place_of_the_models():
    """Loss, bound and samples are those of a model that has the process to begin with."""
    steep, flat = sgm(VP(beta_max=20.0)), sgm(VP(beta_max=5.0))
    params = flat.init(jax.random.key(0))
    learned = params | {"process": VP(beta_max=5.0)}
    batch, key = Batch(jax.random.normal(jax.random.key(1), (16, 2))), jax.random.key(2)
    sampler = Sampler(method=METHODS["Heun"](), steps=Linear(steps=4), t_min=0.1)
    for of in (
        lambda model, params: model.loss(params, batch, key)[0],
        lambda model, params: model.bound(params, batch, key).nelbo,
        lambda model, params: model.sample(params, key, 3, sampler)[0],
        lambda model, params: model.encode(params, batch, key, sampler),
    ):
        np.testing.assert_array_equal(of(steep, learned), of(flat, params))
        assert np.any(of(steep, params) != of(flat, params))


def test_the_numbers_of_a_learned_process_have_a_gradient(x64):
    """The loss is differentiable in the noise rates, as by finite differences: a schedule can be trained."""
    model = sgm(VP())
    params, batch = model.init(jax.random.key(0)), Batch(jax.random.normal(jax.random.key(1), (16, 2)))

    def loss(beta_max):
        process = dataclasses.replace(VP(), beta_max=beta_max)
        return model.loss(params | {"process": process}, batch, jax.random.key(2))[0]

    step = 1e-5
    slope = (loss(20.0 + step) - loss(20.0 - step)) / (2.0 * step)
    np.testing.assert_allclose(jax.grad(loss)(20.0), slope, rtol=1e-6)
    assert abs(slope) > 1e-3
