"""Solvers on Normal data, where the score, the map from noise to data and every log-density are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lsgm_jax.solvers.ode import ODESolver, log_density, solve_to_data

from lsgm_jax.arrays import Phase, coordinates, expand
from lsgm_jax.diffusions import linear
from lsgm_jax.diffusions.vp import VP, GeometricVP
from lsgm_jax.solvers import ode
from lsgm_jax.solvers.nfe import EVALUATIONS
from tests.processes import MAIN

MEAN, VARIANCE = 1.5, 0.25
PROCESSES = {"vp": VP(), "geometric": GeometricVP()}
ORDERS = {
    "Euler": 1,
    "Heun": 2,
    "Midpoint": 2,
    "Ralston": 2,
    "Bosh3": 3,
    "Tsit5": 5,
    "Dopri5": 5,
    "Dopri8": 8,
}


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


def moments(process, t):
    """Mean and covariance of z_t for data N(MEAN, VARIANCE)."""
    signal, noise = linear.kernel(process, t)
    cov = noise @ noise.mT + VARIANCE * signal[..., :, None] * signal[..., None, :]
    return MEAN * signal, cov


def exact_eps(process):
    """Noise prediction of N(MEAN, VARIANCE): -sigma times the score of the marginal."""

    def predict(z_t, t):
        mean, cov = moments(process, t)
        row = linear.sigma(process, t)[:, None] * jnp.linalg.inv(cov)[:, -1]
        values = enumerate(coordinates(z_t))
        return sum(expand(row[:, i], z) * (z - expand(mean[:, i], z)) for i, z in values)

    return predict


def exact_map(process, z_1, t_min):
    """The probability flow carries quantiles to quantiles of the Normal marginals."""

    (mean_1, cov_1), (mean_0, cov_0) = (moments(process, jnp.asarray(t, z_1.dtype)) for t in (1.0, t_min))
    return mean_0 + jnp.sqrt(cov_0[0] / cov_1[0]) * (z_1 - mean_1)


@pytest.mark.parametrize("name", [name for name in EVALUATIONS if name != "Euler"])
def test_adaptive_solvers_find_the_exact_map(x64, process, name):
    solver = ODESolver(name=name, rtol=1e-7, atol=1e-7, t_min=1e-4, max_steps=100_000)
    key = jax.random.key(0)
    solution = solve_to_data(solver, process, exact_eps(process), key, (6, 2))
    exact = exact_map(process, linear.sample_prior(process, key, (6, 2)), 1e-4)
    assert solution.success.all()
    np.testing.assert_allclose(solution.z_0, exact, atol=2e-5)


@pytest.mark.parametrize("name", MAIN)
def test_every_process_carries_its_prior_to_the_data(x64, name):
    """The flow is affine in z_1 = (x_1, v_1); its map turns the moments at t = 1 into those at t_min."""
    process, key, shape = MAIN[name], jax.random.key(0), (6, 2)
    solver = ODESolver(name="Tsit5", rtol=1e-8, atol=1e-8, t_min=1e-4, max_steps=100_000)
    solution = solve_to_data(solver, process, exact_eps(process), key, shape)
    z_1 = coordinates(linear.sample_prior(process, key, shape))
    features = jnp.stack([jnp.ones(12), *(z.ravel() for z in z_1)], axis=-1)
    fitted = jnp.linalg.lstsq(features, solution.z_0.ravel())[0]
    np.testing.assert_allclose(features @ fitted, solution.z_0.ravel(), atol=1e-5)
    (mean_1, cov_1), (mean_0, cov_0) = (moments(process, jnp.asarray(t)) for t in (1.0, 1e-4))
    np.testing.assert_allclose(fitted[0] + fitted[1:] @ mean_1, mean_0[0], atol=1e-5)
    np.testing.assert_allclose(fitted[1:] @ cov_1 @ fitted[1:], cov_0[0, 0], rtol=1e-5)


def test_float32_finds_the_exact_map(process):
    key = jax.random.key(0)
    solution = solve_to_data(ODESolver(), process, exact_eps(process), key, (6, 2))
    assert solution.z_0.dtype == jnp.float32
    exact = exact_map(process, linear.sample_prior(process, key, (6, 2)), 1e-5)
    np.testing.assert_allclose(solution.z_0, exact, atol=2e-4)


@pytest.mark.parametrize("name", ORDERS)
def test_fixed_steps_converge_at_the_solvers_order(x64, name):
    """A process without stiffness, so that the asymptotic regime is reached before rounding."""
    process, key = VP(beta_min=0.5, beta_max=10.0), jax.random.key(1)
    exact = exact_map(process, linear.sample_prior(process, key, (4, 1)), 0.02)
    counts = (8, 16, 32) if name == "Dopri8" else (16, 32, 64)
    errors = []
    for steps in counts:
        solver = ODESolver(name=name, steps=steps, t_min=0.02)
        solution = solve_to_data(solver, process, exact_eps(process), key, (4, 1))
        errors.append(float(jnp.abs(solution.z_0 - exact).max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - ORDERS[name]) < 0.5, errors


def count_calls(solver, process):
    """Evaluations of the network on the batch, counted by the network, and what the solution says."""
    calls, net = [], exact_eps(process)

    def counting(z_t, t):
        jax.debug.callback(lambda: calls.append(1))  # no arguments: fires once for the whole batch
        return net(z_t, t)

    solution = jax.block_until_ready(solve_to_data(solver, process, counting, jax.random.key(2), (5, 2)))
    jax.effects_barrier()
    return len(calls), solution


@pytest.mark.parametrize("name", EVALUATIONS)
def test_nfe_of_fixed_steps_is_what_a_counter_counts(name):
    counted, solution = count_calls(ODESolver(name=name, steps=7), VP())
    assert counted == int(solution.nfe) == round(float(solution.nfe_mean))


@pytest.mark.parametrize("name", [name for name in EVALUATIONS if name != "Euler"])
def test_nfe_of_adaptive_steps_is_what_a_counter_counts(name, process):
    """The geometric process is stiff at t = 1: its first steps are rejected, where FSAL methods have to start over."""
    counted, solution = count_calls(ODESolver(name=name, rtol=1e-4, atol=1e-4), process)
    assert counted == int(solution.nfe)
    assert float(solution.nfe_mean) <= int(solution.nfe)


def test_log_density_of_normal_data_is_exact(x64, process):
    """One dimension: a Rademacher probe gives the exact divergence, so the estimate is the Normal's log-density."""
    z_0 = jnp.array([[1.5], [0.2], [3.0]])
    solver = ODESolver(rtol=1e-8, atol=1e-8, t_min=1e-6)
    density = log_density(solver, process, exact_eps(process), jax.random.key(3), z_0)
    exact = jax.scipy.stats.norm.logpdf(z_0[:, 0], MEAN, np.sqrt(VARIANCE))
    # N(0, 1) stands in for the marginal of z_1, whose mean and variance are off by alpha(1) and its square.
    mean, cov = moments(process, jnp.ones(()))
    z_1 = mean + jnp.sqrt(cov[0] / VARIANCE) * (z_0[:, 0] - MEAN)
    exact += jax.scipy.stats.norm.logpdf(z_1) - jax.scipy.stats.norm.logpdf(z_1, mean, jnp.sqrt(cov[0]))
    start_variance = linear.sigma(process, jnp.asarray(1e-6)) ** 2
    np.testing.assert_allclose(density.log_prob, exact, atol=1e-4 + 20 * start_variance)
    assert density.success.all()


def test_log_density_of_a_phase_leaves_the_velocity_out(x64, monkeypatch):
    """Position and velocity start independent, so for the exact score any drawn velocity gives log p(x_0).

    The probes (1, 1) and (1, -1) are orthogonal, which makes the divergence exact.
    """
    signs = lambda key, state, probes: Phase(
        jnp.ones((len(state.x), 2, 1)), jnp.tile(jnp.array([[1.0], [-1.0]]), (len(state.x), 1, 1))
    )
    monkeypatch.setattr(ode, "_rademacher", signs)
    process, z_0 = MAIN["cld"], jnp.array([[1.5], [0.2], [3.0]])
    solver = ODESolver(name="Dopri8", rtol=1e-9, atol=1e-9, t_min=1e-6)
    density = log_density(solver, process, exact_eps(process), jax.random.key(3), z_0, probes=2)
    exact = jax.scipy.stats.norm.logpdf(z_0[:, 0], MEAN, np.sqrt(VARIANCE))
    np.testing.assert_allclose(density.log_prob, exact, atol=5e-3)  # exp(-8) of the data is left at t = 1


def test_probes_are_fixed_and_unbiased(x64):
    """A score with an off-diagonal Jacobian: single probes scatter around the mean that many probes approach."""
    process = VP()
    coupling = jnp.array([[0.2, 0.5], [0.5, 0.2]])
    net = lambda z_t, t: linear.normal_eps(process, z_t, t) + 0.3 * jnp.tanh(z_t @ coupling)
    z_0 = jnp.array([[0.5, -1.0]])
    solver = ODESolver(rtol=1e-5, atol=1e-5)
    one = jax.jit(lambda key: log_density(solver, process, net, key, z_0).log_prob[0])
    assert one(jax.random.key(0)) == one(jax.random.key(0))
    singles = np.array([one(key) for key in jax.random.split(jax.random.key(1), 60)])
    many = log_density(solver, process, net, jax.random.key(2), z_0, probes=400).log_prob[0]
    assert singles.std() > 1e-3
    assert abs(singles.mean() - many) < 4 * singles.std() * np.sqrt(1 / 60 + 1 / 400)


def test_a_solve_that_runs_out_of_steps_says_so():
    solution = solve_to_data(ODESolver(max_steps=3), VP(), exact_eps(VP()), jax.random.key(0), (4, 1))
    assert not solution.success.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Dopri6"}, "'Dopri6': choose one of Euler, Heun"),
        ({"name": "Euler"}, "give a number of steps"),
        ({"steps": -1}, "steps=-1"),
        ({"rtol": 0.0}, "rtol=0.0"),
    ],
)
def test_bad_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ODESolver(**fields)
