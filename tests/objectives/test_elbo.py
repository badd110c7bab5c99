"""The LSGM objective: one backward pass equals two, and the bound is exact where everything is Normal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.arrays import expand, sum_per_sample
from lsgm_jax.diffusions import linear
from lsgm_jax.diffusions.vp import VP, GeometricVP
from lsgm_jax.objectives import times, weights
from lsgm_jax.objectives.elbo import Objective, denoise, normal_bound

PROCESSES = {"vp": VP(), "geometric": GeometricVP()}


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


def two_layer_net(theta, z_t, t):
    hidden = jnp.tanh(z_t @ theta["in"] + t[:, None] * theta["time"])
    return hidden @ theta["out"]


@pytest.mark.parametrize("weighting", [weights.unweighted, weights.reweighted, weights.likelihood])
def test_one_backward_pass_equals_two(x64, process, weighting):
    """LSGM Algorithm 3 written out with two gradients: the prior's with w_p, the encoder's with kl * w_q."""
    keys = jax.random.split(jax.random.key(0), 6)
    theta = {
        "in": jax.random.normal(keys[0], (3, 16)),
        "time": jax.random.normal(keys[1], (16,)),
        "out": jax.random.normal(keys[2], (16, 3)) / 4,
    }
    phi = jax.random.normal(keys[3], (5, 3))
    x, eps = jax.random.normal(keys[4], (8, 5)), jax.random.normal(keys[5], (8, 3))
    objective = Objective(prior_weighting=weighting, density=times.Uniform(t_min=0.01), control_variate=False)
    t, kl = jnp.linspace(0.02, 0.98, 8), 0.7

    def one_pass(phi, theta):
        eps_net = lambda z_t, t: two_layer_net(theta, z_t, t)
        return denoise(objective, process, eps_net, x @ phi, t, eps, kl).loss.mean()

    def weighted_error(weight):
        def loss(phi, theta):
            z_t = linear.perturb(process, x @ phi, t, eps)
            error = sum_per_sample((eps - two_layer_net(theta, z_t, t)) ** 2)
            return (weight(process, t) / objective.density.density(process, t) * error).mean()

        return loss

    g_phi, g_theta = jax.grad(one_pass, argnums=(0, 1))(phi, theta)
    expected_phi = kl * jax.grad(weighted_error(weights.likelihood))(phi, theta)
    expected_theta = jax.grad(weighted_error(weighting), argnums=1)(phi, theta)
    np.testing.assert_allclose(g_phi, expected_phi, rtol=1e-11)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), g_theta, expected_theta)
    if weighting is not weights.likelihood:  # the two weightings really differ
        assert not np.allclose(g_phi, kl * jax.grad(weighted_error(weighting))(phi, theta), rtol=0.1)


def normal_score(process, data_variance):
    """Exact noise prediction for z_0 ~ N(0, data_variance)."""

    def predict(z_t, t):
        sigma = linear.sigma(process, t)
        return expand(sigma / (process.alpha(t) ** 2 * data_variance + sigma**2), z_t) * z_t

    return predict


def posterior_draws(key, count=512):
    """z_0 ~ q = N((0.8, -0.3), (0.2, 0.5)^2), and CE(q || N(0, v)) in closed form as a function of v."""
    mean, std = jnp.array([0.8, -0.3]), jnp.array([0.2, 0.5])
    z_0 = mean + std * jax.random.normal(key, (count, 2))
    return z_0, lambda v: 0.5 * jnp.sum((mean**2 + std**2) / v + jnp.log(2 * jnp.pi * v))


def estimated_cross_entropy(objective, process, data_variance=0.4, repeats=400):
    """Mean and standard error of the estimate for the exact score of N(0, data_variance)."""

    def one(key):
        k_z, k_t, k_eps = jax.random.split(key, 3)
        z_0, _ = posterior_draws(k_z)
        t = times.sample_times(objective.density, process, k_t, len(z_0))
        eps = jax.random.normal(k_eps, z_0.shape)
        eps_net = normal_score(process, data_variance)
        return denoise(objective, process, eps_net, z_0, t, eps).cross_entropy.mean()

    values = jax.lax.map(one, jax.random.split(jax.random.key(1), repeats))
    return values.mean(), values.std() / np.sqrt(repeats)


@pytest.mark.parametrize("density", [times.LogVarianceUniform, times.Defensive])
def test_published_cross_entropy_is_exact_for_normal_data(x64, process, density):
    """With the exact score of N(0, v) the paper's estimate is CE(q || N(0, v)) for any q (LSGM Theorem 1)."""
    objective = Objective(
        prior_weighting=weights.likelihood, density=density(t_min=1e-6), control_variate=False
    )
    mean, stderr = estimated_cross_entropy(objective, process)
    exact = posterior_draws(jax.random.key(0))[1](0.4)
    # What the paper neglects: sigma2_min at t = 0 and alpha(1)^2 at t = 1, at most 1e-3 for these processes.
    assert abs(mean - exact) < 4 * stderr + 2e-3
    assert stderr < 0.05


@pytest.mark.parametrize("t_min", [1e-6, 1e-3, 0.05])
def test_low_noise_cross_entropy_bounds_the_exact_one(x64, process, t_min):
    """It exceeds CE(q || N(0, v)) by the two gaps alone, and those vanish with t_min."""
    objective = Objective(prior_weighting=weights.unweighted, density=times.Defensive(t_min=t_min))
    mean, stderr = estimated_cross_entropy(objective, process)
    exact = posterior_draws(jax.random.key(0))[1](0.4)
    assert mean > exact - 4 * stderr
    if t_min == 1e-6:
        assert abs(mean - exact) < 4 * stderr + 2e-3


@pytest.mark.parametrize("t_min", [1e-4, 0.01])
def test_normal_bound_is_the_integral_it_replaces(x64, process, t_min):
    """Closed form (O9) against quadrature over t of (O7), with the expectation over eps taken exactly."""
    z = jnp.array([0.7, -1.9])
    t = jnp.exp(jnp.linspace(jnp.log(t_min), 0.0, 400_001))
    a2, s2 = process.alpha(t) ** 2, linear.variance(process, t)
    total = a2 + s2  # E|eps - s z_t / total|^2 = (a^4 + s^2 a^2 z^2) / total^2 per dimension
    error = (2 * a2**2 + s2 * a2 * (z**2).sum()) / total**2
    integral = jnp.trapezoid(weights.likelihood(process, t) * error, t)
    a2, s2 = a2[jnp.array([0, -1])], s2[jnp.array([0, -1])]
    reconstruction = 2 * 0.5 * (1 + jnp.log(2 * jnp.pi * s2[0] / a2[0]))
    kl = 0.5 * (a2[1] * z**2 + s2[1] - 1 - jnp.log(s2[1])).sum()
    exact = reconstruction + integral + kl
    np.testing.assert_allclose(normal_bound(process, z[None], t_min)[0], exact, rtol=1e-7)


def test_control_variate_removes_most_of_the_noise(x64, process):
    """For a latent that is nearly standard Normal, as an encoder's is, the spread falls to an eighth or less."""
    keys = jax.random.split(jax.random.key(2), 3)
    z_0 = 0.9 * jax.random.normal(keys[0], (20_000, 32))
    density = times.Defensive(t_min=1e-3)
    published = Objective(prior_weighting=weights.likelihood, density=density, control_variate=False)
    controlled = dataclasses.replace(published, control_variate=True)
    t = times.sample_times(density, process, keys[1], len(z_0))
    eps, exact = jax.random.normal(keys[2], z_0.shape), normal_score(process, 0.81)
    plain = denoise(published, process, exact, z_0, t, eps).cross_entropy
    quiet = denoise(controlled, process, exact, z_0, t, eps).cross_entropy
    assert quiet.std() < 0.125 * plain.std()
    assert abs((plain - quiet).mean()) < 4 * plain.std() / np.sqrt(len(z_0)) + 0.02


@pytest.mark.parametrize("weighting", [weights.unweighted, weights.likelihood])
def test_control_variate_changes_no_expected_gradient(x64, process, weighting):
    """Mean gradients with and without it agree; the encoder's is far less noisy with it."""
    published = Objective(
        prior_weighting=weighting, density=times.Defensive(t_min=1e-3), control_variate=False
    )
    controlled = dataclasses.replace(published, control_variate=True)
    mean, logit = jnp.array([0.6, -0.4, 1.0]), jnp.zeros(3)

    def loss(objective, mean, logit, key):
        k_z, k_t, k_eps = jax.random.split(key, 3)
        z_0 = mean + 0.5 * jax.random.normal(k_z, (64, 3))
        t = times.sample_times(objective.density, process, k_t, 64)
        eps = jax.random.normal(k_eps, z_0.shape)
        net = lambda z_t, t: normal_score(process, 0.5)(z_t, t) * 2 * jax.nn.sigmoid(logit)
        return denoise(objective, process, net, z_0, t, eps, 0.7).loss.mean()

    def gradients(objective):
        one = jax.jit(jax.grad(lambda mean, logit, key: loss(objective, mean, logit, key), argnums=(0, 1)))
        return jax.lax.map(lambda key: one(mean, logit, key), jax.random.split(jax.random.key(3), 4000))

    (plain_mean, plain_logit), (quiet_mean, quiet_logit) = gradients(published), gradients(controlled)
    np.testing.assert_allclose(plain_logit, quiet_logit, rtol=1e-9)
    difference = plain_mean - quiet_mean
    assert (abs(difference.mean(0)) < 4.5 * difference.std(0) / np.sqrt(4000) + 2e-3).all()
    assert (quiet_mean.std(0) < 0.8 * plain_mean.std(0)).all()


def test_value_of_the_loss_is_the_weighted_error(x64, process):
    """The gradient's scaling leaves no trace in the value."""
    z_0, eps = jnp.ones((4, 3)), jnp.full((4, 3), 0.5)
    t = jnp.array([0.1, 0.3, 0.6, 0.9])
    objective = Objective(
        prior_weighting=weights.reweighted, density=times.Uniform(t_min=0.1), control_variate=False
    )
    matching = denoise(objective, process, lambda z_t, t: jnp.zeros_like(z_t), z_0, t, eps, 0.3)
    w = 0.5 * process.diffusion(t) ** 2 * 0.9
    np.testing.assert_allclose(matching.loss, w * 3 * 0.25, rtol=1e-12)
