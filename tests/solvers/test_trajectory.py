"""Sampling trajectories: they end at the samples, and agree with the exact flow in between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.exact_gaussian import converged_flow, exact_eps, exact_map
from lsgm_jax.arrays import coordinates
from lsgm_jax.processes import linear
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.ve import VE
from lsgm_jax.processes.vp import VP
from lsgm_jax.solvers.grids import Linear, Quadratic, Times
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, solve_to_data
from lsgm_jax.solvers.terms import KeyedNoise
from lsgm_jax.solvers.trajectory import trajectory_to_data

NOISE = KeyedNoise(jax.random.key(7))
TIGHT = Adaptive(rtol=1e-8, atol=1e-8)


def sampler(name, steps, **ends):
    return Sampler(method=METHODS[name](), steps=steps, **{"t_min": 1e-2} | ends)


def prior(process, shape=(5, 2)):
    return linear.sample_prior(process, jax.random.key(0), shape)


def follow(sampler, process, z_1, times):
    net = exact_eps(process)
    return jax.jit(lambda z, times: trajectory_to_data(sampler, process, net, z, NOISE, times))(z_1, times)


def solve(sampler, process, z_1):
    return jax.jit(lambda z: solve_to_data(sampler, process, exact_eps(process), z, NOISE))(z_1)


@pytest.mark.parametrize(
    ("name", "steps", "process"),
    [
        ("Tsit5", Adaptive(rtol=1e-3, atol=1e-3), VP()),
        ("Bosh3", Adaptive(rtol=1e-3, atol=1e-3, per="batch"), CLD()),
        ("Heun", Quadratic(steps=12), CLD()),
        ("EulerMaruyama", Linear(steps=12), CLD()),
        ("SSCS", Quadratic(steps=12), CLD()),
        ("GDDIM", Quadratic(steps=12), CLD()),
        ("DPMSolverPP", Quadratic(steps=12), VP()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_trajectory_begins_with_the_noise_and_ends_with_the_sample(x64, name, steps, process):
    """With the NFE of sampling, also for times between steps."""
    chosen, z_1 = sampler(name, steps), prior(process)
    path, sample = follow(chosen, process, z_1, jnp.linspace(1.0, 1e-2, 7)), solve(chosen, process, z_1)
    np.testing.assert_allclose(path.solution.z_0, sample.z_0, rtol=1e-12)
    np.testing.assert_allclose(coordinates(path.states)[0][-1], sample.z_0, rtol=1e-12)
    for states, noise in zip(coordinates(path.states), coordinates(z_1), strict=True):
        assert states.shape == (7, 5, 2)
        np.testing.assert_allclose(states[0], noise, rtol=1e-12)
    assert int(path.solution.nfe) == int(sample.nfe)


@pytest.mark.parametrize("process", [VP(), VE()], ids=["vp", "ve"])
def test_adaptive_trajectories_follow_the_exact_map(x64, process):
    """The flow of Gaussian data is known at every time, not only at the steps."""
    z_1, times = prior(process), jnp.asarray([1.0, 0.77, 0.4, 0.123, 0.02, 0.01])
    path = follow(sampler("Tsit5", TIGHT), process, z_1, times)
    for t, state in zip(times, path.states, strict=True):
        np.testing.assert_allclose(state, exact_map(process, z_1, t), atol=2e-6)


def test_states_of_cld_agree_with_a_solve_that_ends_there(x64):
    """And the derivative of the interpolation is the vector field of the flow, for position and velocity."""
    process = CLD()
    z_1 = prior(process)
    near = follow(sampler("Dopri8", TIGHT), process, z_1, jnp.asarray([0.3 + 1e-4, 0.3, 0.3 - 1e-4])).states
    np.testing.assert_allclose(near.x[1], converged_flow(process, z_1, 0.3), atol=1e-6)
    z_t, t = jax.tree.map(lambda states: states[1], near), jnp.full(5, 0.3)
    slope = linear.probability_flow(process, z_t, exact_eps(process)(z_t, t), t)
    np.testing.assert_allclose((near.x[0] - near.x[2]) / 2e-4, slope.x, atol=1e-4)
    np.testing.assert_allclose((near.v[0] - near.v[2]) / 2e-4, slope.v, atol=1e-4)


@pytest.mark.parametrize("name", ["EulerMaruyama", "SSCS"])
def test_at_a_step_a_trajectory_equals_the_end_of_a_shorter_grid(x64, name):
    """With the same noise. Between two steps the interpolation is linear."""
    process, values = CLD(), (1.0, 0.7, 0.4, 0.2, 0.05)
    z_1 = prior(process)
    times = jnp.asarray([0.7, 0.55, 0.4, 0.2])
    x = follow(sampler(name, Times(values=values)), process, z_1, times).states.x
    for index, count in ((0, 2), (3, 4)):
        shorter = solve(sampler(name, Times(values=values[:count])), process, z_1).z_0
        np.testing.assert_allclose(x[index], shorter, atol=1e-12)
    np.testing.assert_allclose(x[1], 0.5 * (x[0] + x[2]), atol=1e-12)


def test_the_last_position_is_denoised_and_the_last_state_is_not(x64):
    process, z_1 = CLD(), prior(CLD())
    chosen = sampler("Heun", Linear(steps=4), t_min=0.1, denoise="mean")
    path = follow(chosen, process, z_1, jnp.asarray([1.0, 0.1]))
    np.testing.assert_allclose(path.positions[-1], solve(chosen, process, z_1).z_0, rtol=1e-12)
    assert np.abs(path.positions[-1] - path.states.x[-1]).max() > 0.01


@pytest.mark.parametrize("name", ["Heun", "Tsit5"])
def test_saved_states_take_no_evaluation(name):
    """Interpolation uses the evaluations of the steps."""
    calls, process, chosen = [], VP(), sampler(name, Adaptive(rtol=1e-3, atol=1e-3))
    net = exact_eps(process)

    def counting(z_t, t):
        jax.debug.callback(lambda: calls.append(1))  # no arguments: fires once for the whole batch
        return net(z_t, t)

    times = jnp.linspace(1.0, 1e-2, 40)
    run = jax.jit(lambda z: trajectory_to_data(chosen, process, counting, z, NOISE, times).solution)
    solution = jax.block_until_ready(run(prior(process)))
    jax.effects_barrier()
    assert len(calls) == int(solution.nfe)


def test_a_failed_trajectory_is_finite_up_to_the_failure():
    path = follow(sampler("Tsit5", Adaptive(max_steps=3)), VP(), prior(VP()), jnp.linspace(1.0, 1e-2, 5))
    assert not path.solution.success.any()
    assert jnp.isfinite(path.states[0]).all()
    assert not jnp.isfinite(path.states[-1]).any()
