"""Score matching: hybrid and plain have the same minimiser, and the plain target has a larger variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.arrays import Phase, coordinates, expand
from lsgm_jax.objectives import weightings
from lsgm_jax.objectives.elbo import Objective, dsm_loss, plain_dsm_loss, sample_draw
from lsgm_jax.objectives.score_matching import known_start, phase_score_matching, score_matching
from lsgm_jax.objectives.time_densities import Defensive
from lsgm_jax.processes import linear
from lsgm_jax.processes.cld import CLD
from tests.process_examples import MAIN

COUNT = 200_000


def draws(process, seed=0):
    """Gaussian data, one time, and noise."""
    keys = jax.random.split(jax.random.key(seed), 3)
    z_0 = jnp.sqrt(linear.data_variance(process)) * jax.random.normal(keys[0], (COUNT, 1))
    return z_0, jax.random.normal(keys[1], (COUNT, 1)), linear.unit_noise(process, keys[2], z_0.shape)


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("time", [0.6, 0.9])
def test_the_exact_score_is_the_minimiser(x64, name, time):
    """Scaling the exact prediction by 1 + a costs a^2 E[eps_hat^2], whatever the sign: a stationary minimum."""
    process, t = MAIN[name], jnp.full(COUNT, time)
    z_0, _, eps = draws(process)

    def loss(factor):
        net = lambda z_t, t: factor * linear.gaussian_eps(process, z_t, t)
        return score_matching(weightings.unweighted, process, net, z_0, t, eps)

    slope, spread = loss(1.1) - loss(0.9), 5 / np.sqrt(COUNT)
    assert abs(slope.mean()) < spread * slope.std()
    assert loss(1.0).mean() < loss(0.5).mean()
    np.testing.assert_allclose(
        loss(1.0).mean(), linear.gaussian_error(process, jnp.asarray(time)), rtol=5 * np.sqrt(2 / COUNT)
    )


@pytest.mark.parametrize("time", [0.05, 0.5])
def test_hybrid_and_plain_score_matching_have_the_same_score(x64, time):
    """Least squares of the velocity score on the state gives the score of the marginal (CLD section 3.1).

    Plain score matching conditions on the initial velocity, so its target has a larger variance around the same mean.
    """
    process, t = CLD(), jnp.full(COUNT, time)
    z_0, unit_v, eps = draws(process)
    v_0 = jnp.sqrt(process.initial_variance()[1]) * unit_v
    start = known_start(process)
    hybrid = linear.perturb(process, z_0, t, eps)
    plain = linear.move(start, Phase(z_0, v_0), jnp.zeros(COUNT), t, eps)

    def fitted(state, kernel_process):
        score = -eps.v / expand(linear.sigma(kernel_process, t), eps.v)
        features = jnp.concatenate(coordinates(state), axis=-1)
        coefficients, residual = jnp.linalg.lstsq(features, score)[:2]
        return coefficients[:, 0], residual[0] / COUNT

    (of_hybrid, noise_of_hybrid), (of_plain, noise_of_plain) = fitted(hybrid, process), fitted(plain, start)
    signal, noise = linear.kernel(process, jnp.asarray(time))
    exact = -jnp.linalg.inv(noise @ noise.T + jnp.outer(signal, signal))[-1]
    inverse = jnp.diag(jnp.linalg.inv(noise @ noise.T + jnp.outer(signal, signal)))
    for coefficients, residual in ((of_hybrid, noise_of_hybrid), (of_plain, noise_of_plain)):
        tolerance = 5 * jnp.sqrt(residual * inverse / COUNT)
        assert (abs(coefficients - exact) < tolerance).all()
    assert noise_of_hybrid < noise_of_plain


def test_plain_score_matching_uses_the_kernel_of_known_start(x64):
    """Its loss is the weighted error of the noise of the process `known_start`."""
    process, count = CLD(), 64
    keys = jax.random.split(jax.random.key(1), 3)
    z_0 = Phase(jax.random.normal(keys[0], (count, 2)), 0.1 * jax.random.normal(keys[1], (count, 2)))
    eps, t = linear.unit_noise(process, keys[2], (count, 2)), jnp.linspace(0.01, 1.0, count)
    zero = lambda z_t, t: jnp.zeros_like(z_t.x)
    start = known_start(process)
    loss = phase_score_matching(weightings.likelihood, process, start, zero, z_0, t, eps)
    sigma = linear.sigma(start, t)
    exact = process.damping() * process.beta(t) / sigma**2 * (eps.v**2).sum(-1)
    np.testing.assert_allclose(loss, exact, rtol=1e-12)
    assert (sigma < linear.sigma(process, t)).all()


def test_hybrid_and_plain_matching_estimate_the_same_cross_entropy(x64):
    """For any network, and with the constant of either: they differ in the condition at time 0 alone (O12)."""
    process, start, count = CLD(), known_start(CLD()), 200_000
    objective = Objective(
        prior_weighting=weightings.likelihood, density=Defensive(t_min=1e-3), control_variate=False
    )
    wrong = lambda z_t, t: 0.9 * linear.gaussian_eps(process, z_t, t) + 0.05 * z_t.x
    z_0 = 0.7 * jax.random.normal(jax.random.key(0), (count, 1))
    draw = sample_draw(objective.density, objective.spread, process, jax.random.key(1), z_0)
    hybrid = dsm_loss(objective, process, wrong, z_0, draw).cross_entropy
    plain = plain_dsm_loss(objective, process, start, wrong, z_0, jax.random.key(2)).cross_entropy
    error = np.sqrt((hybrid.var() + plain.var()) / count)
    assert abs(hybrid.mean() - plain.mean()) < 4.0 * error
    constants = [linear.noise_entropy(kernel, jnp.asarray(1e-3)) for kernel in (process, start)]
    assert constants[0] - constants[1] > 20.0 * error  # the test would detect the wrong constant
