"""The first step of adaptive solvers: closed forms of the estimate, and what it costs."""

import dataclasses

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.exact_gaussian import exact_eps, exact_map
from lsgm_jax.arrays import coordinates
from lsgm_jax.processes import linear
from lsgm_jax.processes.vp import VP
from lsgm_jax.solvers.first_step import first_step
from lsgm_jax.solvers.integrate import Adaptive, integrate_adaptively
from lsgm_jax.solvers.likelihood import log_density
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, sample, solve_to_data
from lsgm_jax.solvers.terms import KeyedNoise
from tests.process_examples import MAIN

RTOL, ATOL = 1e-3, 1e-4


def estimate(vector_field, start, begin=0.0, end=100.0, scheme=None):
    controller = diffrax.PIDController(rtol=RTOL, atol=ATOL)
    term = diffrax.ODETerm(lambda t, y, args: vector_field(t, y))
    start, ends = jnp.asarray(start), (jnp.asarray(begin), jnp.asarray(end))
    return first_step(scheme or diffrax.Tsit5(), controller, term, *ends, start, None)


# Closed forms


@pytest.mark.parametrize(
    ("rate", "scheme", "order"),
    [(-30.0, diffrax.Tsit5(), 5), (-0.5, diffrax.Bosh3(), 3), (0.02, diffrax.Heun(), 2)],
)
def test_the_step_of_a_linear_equation_has_a_closed_form(x64, rate, scheme, order):
    """y' = a y: the trial step is 0.01 / |a|, and y'' = a^2 y exactly by the difference of both evaluations."""
    y = 2.5
    found = estimate(lambda t, y: rate * y, [y], scheme=scheme)
    in_tolerances = y / (ATOL + RTOL * y)
    fastest = max(abs(rate), rate**2) * in_tolerances
    expected = min(1.0 / abs(rate), (0.01 / fastest) ** (1.0 / order))
    np.testing.assert_allclose(found.length, expected, rtol=1e-9)
    np.testing.assert_array_equal(found.rate, rate * y)


def test_the_step_of_a_constant_rate_depends_on_the_rate_alone(x64):
    found = estimate(lambda t, y: jnp.full_like(y, 3.0), [1.0, 1.0])
    np.testing.assert_allclose(found.length, min(1.0 / 3.0, (0.01 * (ATOL + RTOL) / 3.0) ** 0.2), rtol=1e-12)


def test_values_that_do_not_move_get_a_tiny_step(x64):
    assert float(estimate(lambda t, y: 0.0 * y, [1.0]).length) == 1e-6


def test_the_step_does_not_leave_the_interval(x64):
    """Nor does the trial: the vector field of this equation is not finite beyond the end."""
    inside = lambda t, y: jnp.where(t <= 2.0, 0.001 * y, jnp.nan)
    assert float(estimate(inside, [1.0], begin=1.75, end=2.0).length) == 0.25


def test_a_vector_field_that_is_not_finite_after_the_trial_leaves_the_trial(x64):
    burst = lambda t, y: jnp.where(t > 0.0, jnp.inf, y)
    np.testing.assert_allclose(estimate(burst, [1.0]).length, 0.01, rtol=1e-12)


# Cost


def counted(run, net):
    """The number of evaluations on the batch, counted by the network, and what `run` returns."""
    calls = []

    def counting(z_t, t):
        jax.debug.callback(lambda: calls.append(1))  # no arguments: fires once for the whole batch
        return net(z_t, t)

    result = jax.block_until_ready(jax.jit(lambda: run(counting))())
    jax.effects_barrier()
    return len(calls), result


@pytest.mark.parametrize(
    ("process", "name", "per", "first"),
    [
        ("vp", "Tsit5", "hardest", None),
        ("vp", "Tsit5", "sample", 1.0),
        ("vp", "Heun", "batch", 1.0),
        ("cld", "Tsit5", "sample", None),
        ("cld", "Heun", "hardest", None),
        ("cld", "Tsit5", "batch", 1.0),
    ],
)
def test_nfe_of_samples_equals_the_counted_evaluations(process, name, per, first):
    """A first step as long as the interval is rejected, so that FSAL solvers evaluate its start again."""
    chosen, steps = MAIN[process], Adaptive(rtol=1e-3, atol=1e-3, per=per, first_step=first)
    sampler = Sampler(method=METHODS[name](), steps=steps, t_min=1e-3)
    draw = lambda net: sample(sampler, chosen, net, jax.random.key(1), (4, 2))
    calls, solution = counted(draw, exact_eps(chosen))
    assert solution.success.all()
    assert calls == int(solution.nfe)


@pytest.mark.parametrize(("process", "per"), [("vp", "batch"), ("cld", "sample")])
def test_nfe_of_likelihoods_equals_the_counted_evaluations(process, per):
    """From the data to the noise, with the integral of the divergence in the state."""
    chosen, z_0 = MAIN[process], 1.5 + 0.5 * jax.random.normal(jax.random.key(0), (4, 2))
    sampler = Sampler(steps=Adaptive(rtol=1e-3, atol=1e-3, per=per), t_min=1e-3)
    density = lambda net: log_density(sampler, chosen, net, jax.random.key(1), z_0)
    calls, found = counted(density, exact_eps(chosen))
    assert calls == int(found.nfe)


def test_the_estimate_costs_two_evaluations_of_which_fsal_solvers_need_one_anyway(x64):
    """y' = y with a given first step equal to the estimate: the same steps, one evaluation fewer."""
    term, start = diffrax.ODETerm(lambda t, y, args: y), jnp.ones((1, 1))
    for name, difference in (("Tsit5", 1), ("Heun", 2)):
        method = METHODS[name]()
        controller = diffrax.PIDController(rtol=1e-5, atol=1e-5)
        ends = jnp.asarray(0.0), jnp.asarray(1.0)
        length = float(first_step(method.scheme, controller, term, *ends, start, None).length)
        found, given = (
            integrate_adaptively(method, Adaptive(first_step=first), term, start, 0.0, 1.0)
            for first in (None, length)
        )
        np.testing.assert_allclose(found.end, given.end, rtol=1e-14)
        assert int(found.evaluations.batch) - int(given.evaluations.batch) == difference


def test_a_solve_calls_nothing_on_the_host():
    """JAX keeps no program with a callback in its compilation cache."""
    process, steps = VP(), Adaptive(rtol=1e-3, atol=1e-3)
    for per in ("sample", "batch"):
        sampler = Sampler(steps=dataclasses.replace(steps, per=per), t_min=1e-3)
        draw = lambda key, sampler=sampler: sample(sampler, process, exact_eps(process), key, (2, 1))
        assert "callback" not in jax.jit(draw).lower(jax.random.key(0)).as_text()


# Samples


def test_separate_steps_are_those_of_every_sample_alone(x64):
    """The samples, and the evaluations that each needs."""
    chosen, noise = MAIN["cld"], KeyedNoise(jax.random.key(0))
    z_1 = linear.sample_prior(chosen, jax.random.key(0), (3, 2))
    sampler = Sampler(steps=Adaptive(rtol=1e-4, atol=1e-4), t_min=1e-3)
    solve = jax.jit(lambda z: solve_to_data(sampler, chosen, exact_eps(chosen), z, noise))
    together = solve(z_1)
    alone = [solve(jax.tree.map(lambda z, i=i: z[i : i + 1], z_1)) for i in range(3)]
    np.testing.assert_allclose(together.z_0, jnp.concatenate([each.z_0 for each in alone]), rtol=1e-10)
    assert int(together.nfe) == max(int(each.nfe) for each in alone)
    np.testing.assert_allclose(together.nfe_mean, np.mean([float(each.nfe) for each in alone]), rtol=1e-6)


@pytest.mark.parametrize("per", ["sample", "hardest"])
def test_the_error_falls_with_the_tolerance(x64, per):
    process, noise = VP(), KeyedNoise(jax.random.key(0))
    z_1 = linear.sample_prior(process, jax.random.key(0), (6, 2))
    exact, errors = exact_map(process, z_1, 1e-3), []
    for tolerance in (1e-3, 1e-5, 1e-7):
        sampler = Sampler(steps=Adaptive(rtol=tolerance, atol=tolerance, per=per), t_min=1e-3)
        solve = jax.jit(
            lambda z, sampler=sampler: solve_to_data(sampler, process, exact_eps(process), z, noise)
        )
        errors.append(float(jnp.abs(solve(z_1).z_0 - exact).max()) / tolerance)
    assert max(errors) < 30.0


def test_adaptive_solves_are_differentiable(x64):
    """By the noise, through the estimate of the first step; along the exact map, whose slope is known."""
    process, noise = VP(), KeyedNoise(jax.random.key(0))
    sampler = Sampler(steps=Adaptive(rtol=1e-8, atol=1e-8), t_min=1e-3)
    end = lambda z: coordinates(solve_to_data(sampler, process, exact_eps(process), z, noise).z_0)[0].sum()
    z_1 = jnp.array([[0.3], [-1.0]])
    slope = jax.grad(lambda z: exact_map(process, z, 1e-3).sum())(z_1)
    np.testing.assert_allclose(jax.jit(jax.grad(end))(z_1), slope, rtol=1e-6)


def test_a_first_step_outside_of_the_interval_is_refused():
    for length in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"first_step=.*give a length of time"):
            Adaptive(first_step=length)
