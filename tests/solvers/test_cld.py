"""The solvers of CLD: orders on Gaussian data, where every step is affine, and cases with exact steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.exact_gaussian import converged_flow, exact_eps
from experiments.solver_orders import CLD_T_MIN as T_MIN
from experiments.solver_orders import cld_cases, slope
from lsgm_jax.arrays import Phase, as_state, coordinates
from lsgm_jax.processes import linear
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.vp import VP
from lsgm_jax.solvers.grids import Linear, Quadratic
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, solve_to_data
from lsgm_jax.solvers.sscs import half_step
from lsgm_jax.solvers.terms import KeyedNoise

PROCESSES = {"constant": CLD(), "linear": CLD(beta_min=0.1, beta_max=7.0, mass=0.5, v0_var_scale=0.2)}
OWN = [("SSCS", 1), ("SSCS", 2), ("GDDIM", 1), ("GDDIM", 2), ("GDDIM", 3)]


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The same noise in any precision."""

    values: np.ndarray  # [steps, parts, coordinates, ...]

    def draw(self, step, part, like):
        values = jnp.asarray(self.values, coordinates(like)[0].dtype)
        return as_state(list(values[step, part]))


def build(name, order, grid):
    return Sampler(method=METHODS[name](order=order), steps=grid, t_min=T_MIN)


def solve(sampler, process, z_1, noise=None, eps_net=None):
    eps_net = eps_net or exact_eps(process)
    noise = noise or KeyedNoise(jax.random.key(7))
    return jax.jit(lambda z: solve_to_data(sampler, process, eps_net, z, noise))(z_1)


@pytest.mark.parametrize(
    "process", ["constant", pytest.param("linear", marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.parametrize("case", cld_cases(CLD()), ids=lambda case: case.label)
def test_errors_fall_at_the_order_of_the_method(x64, process, case):
    """For the two smaller numbers of steps; docs/solver_orders.md has all of them."""
    setting = case.setting._replace(process=process, counts=case.setting.counts[:2])
    assert abs(slope(case.build, setting) - case.build(setting.counts[0]).order) < 0.25


def test_half_steps_preserve_the_prior(x64, process):
    """They solve the reverse SDE of data with the prior's distribution, and two short ones compose to a long one."""
    half = lambda t, s: jax.jit(lambda z, eps: half_step(process, z, jnp.asarray(t), jnp.asarray(s), eps))
    unit, none = jnp.eye(4)[:, :2], jnp.zeros((4, 2))
    units, nothing = Phase(unit[:, :1], unit[:, 1:]), Phase(none[:, :1], none[:, 1:])

    def parts(t, s):
        mean = jnp.concatenate(half(t, s)(units, nothing), axis=1)[:2].T
        noise = jnp.concatenate(half(t, s)(nothing, units), axis=1)[:2].T
        return mean, noise @ noise.T

    (mean, cov), (first, early), (second, late) = parts(0.6, 0.1), parts(0.6, 0.3), parts(0.3, 0.1)
    prior = jnp.diag(jnp.asarray(process.prior_variance()))
    np.testing.assert_allclose(mean @ prior @ mean.T + cov, prior, atol=1e-12)
    np.testing.assert_allclose(second @ first, mean, atol=1e-12)
    np.testing.assert_allclose(second @ early @ second.T + late, cov, atol=1e-12)


@pytest.mark.parametrize(("name", "friction"), [("constant", None), ("linear", 3.0), ("linear", 0.7)])
def test_gddim_is_exact_for_data_at_a_point(x64, name, friction):
    """In one step, and in several, which also need the right velocity at the end of each step."""
    process = dataclasses.replace(PROCESSES[name], friction=friction)
    point = {"eps_net": exact_eps(process, mean=0.7, variance=0.0)}
    z_1 = linear.sample_prior(process, jax.random.key(0), (5, 1))
    exact = converged_flow(process, z_1, T_MIN, **point)
    for order, steps in ((1, 1), (3, 4)):
        found = solve(build("GDDIM", order, Linear(steps=steps)), process, z_1, **point).z_0
        np.testing.assert_allclose(found, exact, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "order"),
    [pytest.param(*own, marks=() if own in (("SSCS", 2), ("GDDIM", 3)) else pytest.mark.slow) for own in OWN],
)
def test_float32_agrees_with_float64(name, order):
    """Also in the short last steps, where covariances as differences would cancel."""
    values = np.random.default_rng(0).normal(size=(200, 2, 2, 16, 1)).astype(np.float32)
    found = []
    for double in (False, True):
        with jax.enable_x64(double):
            dtype = jnp.float64 if double else jnp.float32
            z_1 = Phase(jnp.asarray(values[0, 0, 0], dtype), 0.5 * jnp.asarray(values[1, 0, 0], dtype))
            sampler = build(name, order, Quadratic(steps=200))
            found.append(np.asarray(solve(sampler, CLD(), z_1, Recorded(values)).z_0))
    assert [z_0.dtype for z_0 in found] == [np.float32, np.float64]
    np.testing.assert_allclose(*found, atol=1e-4)


@pytest.mark.parametrize(("name", "order"), OWN)
def test_nfe_equals_the_counted_evaluations(name, order):
    calls, process = [], CLD()
    net = exact_eps(process)

    def counting(z_t, t):
        jax.debug.callback(lambda: calls.append(1))  # no arguments: fires once for the whole batch
        return net(z_t, t)

    z_1 = linear.sample_prior(process, jax.random.key(0), (5, 1))
    solution = jax.block_until_ready(
        solve(build(name, order, Linear(steps=7)), process, z_1, eps_net=counting)
    )
    jax.effects_barrier()
    assert len(calls) == int(solution.nfe) == round(float(solution.nfe_mean))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SSCS", r"^solver 'SSCS' is for CLD, not for VP: use EulerMaruyama, "),
        ("GDDIM", r"^solver 'GDDIM' is for processes with a velocity, not for VP: there it is 'DEIS'"),
    ],
)
def test_other_processes_are_refused(name, message):
    sampler = Sampler(method=METHODS[name](), steps=Linear(steps=2))
    with pytest.raises(ValueError, match=message) as refusal:
        solve_to_data(sampler, VP(), exact_eps(VP()), jnp.zeros((3, 1)), KeyedNoise(jax.random.key(0)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["SSCS", "GDDIM"])
def test_unknown_orders_are_refused(name):
    with pytest.raises(ValueError, match=rf"^order=4 of {name}: choose one of 1, 2"):
        METHODS[name](order=4)
