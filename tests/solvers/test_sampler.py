"""Sampling of Gaussian data, for which the score and the map from noise to data are known."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.exact_gaussian import MEAN, VARIANCE, exact_eps, exact_map, moments
from lsgm_jax.arrays import coordinates
from lsgm_jax.processes import linear
from lsgm_jax.processes.vp import VP, GeometricVP
from lsgm_jax.solvers.grids import Linear, Quadratic, Times
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.method import Cost, Method
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, sample, slerp, solve_to_data, solve_to_noise
from lsgm_jax.solvers.terms import KeyedNoise
from tests.process_examples import MAIN

PROCESSES = {"vp": VP(), "geometric": GeometricVP()}
ADAPTIVE = [name for name, make in METHODS.items() if make().adaptive]
NOISE = KeyedNoise(jax.random.key(7))


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


def prior(process, shape, seed=0):
    return linear.sample_prior(process, jax.random.key(seed), shape)


def solve(sampler, process, z_1):
    return jax.jit(lambda z: solve_to_data(sampler, process, exact_eps(process), z, NOISE))(z_1)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_solvers_find_the_exact_map(x64, process, name):
    sampler = Sampler(
        method=METHODS[name](), steps=Adaptive(rtol=1e-7, atol=1e-7, max_steps=100_000), t_min=1e-4
    )
    z_1 = prior(process, (6, 2))
    solution = solve(sampler, process, z_1)
    assert solution.success.all()
    np.testing.assert_allclose(solution.z_0, exact_map(process, z_1, 1e-4), atol=2e-5)


@pytest.mark.parametrize("name", MAIN)
def test_the_flow_of_every_process_maps_moments_to_those_of_the_data(x64, name):
    """The flow is affine in z_1 = (x_1, v_1), and maps the moments at t = 1 to those at t_min."""
    process, shape = MAIN[name], (6, 2)
    sampler = Sampler(steps=Adaptive(rtol=1e-8, atol=1e-8, max_steps=100_000), t_min=1e-4)
    z_1 = prior(process, shape)
    solution = solve(sampler, process, z_1)
    features = jnp.stack([jnp.ones(12), *(z.ravel() for z in coordinates(z_1))], axis=-1)
    fitted = jnp.linalg.lstsq(features, solution.z_0.ravel())[0]
    np.testing.assert_allclose(features @ fitted, solution.z_0.ravel(), atol=1e-5)
    (mean_1, cov_1), (mean_0, cov_0) = (moments(process, jnp.asarray(t)) for t in (1.0, 1e-4))
    np.testing.assert_allclose(fitted[0] + fitted[1:] @ mean_1, mean_0[0], atol=1e-5)
    np.testing.assert_allclose(fitted[1:] @ cov_1 @ fitted[1:], cov_0[0, 0], rtol=1e-5)


def test_float32_finds_the_exact_map(process):
    z_1 = prior(process, (6, 2))
    solution = solve(Sampler(), process, z_1)
    assert solution.z_0.dtype == jnp.float32
    np.testing.assert_allclose(solution.z_0, exact_map(process, z_1, 1e-5), atol=2e-4)


# One step size for the batch


def test_one_step_size_by_the_largest_error_is_more_accurate_than_by_the_mean(x64):
    """The error of a single outlier hardly changes the mean over many samples, but it is the maximum."""
    process = VP()
    z_1 = prior(process, (200, 2)).at[0].set(60.0)
    exact = exact_map(process, z_1, 1e-4)
    error, nfe = {}, {}
    for per in ("sample", "batch", "hardest"):
        sampler = Sampler(steps=Adaptive(rtol=1e-9, atol=1e-4, per=per), t_min=1e-4)
        solution = solve(sampler, process, z_1)
        error[per], nfe[per] = jnp.abs(solution.z_0 - exact).max(), int(solution.nfe)
        assert float(solution.nfe_mean) == nfe[per] or per == "sample"
    assert error["hardest"] < 0.5 * error["batch"]
    assert nfe["batch"] < nfe["hardest"]


# Evaluations


def count_calls(sampler, process):
    """The number of evaluations on the batch, counted by the network, and the solution."""
    calls, net = [], exact_eps(process)

    def counting(z_t, t):
        jax.debug.callback(lambda: calls.append(1))  # no arguments: fires once for the whole batch
        return net(z_t, t)

    run = jax.jit(lambda key: sample(sampler, process, counting, key, (5, 2)))
    solution = jax.block_until_ready(run(jax.random.key(2)))
    jax.effects_barrier()
    return len(calls), solution


@pytest.mark.parametrize("per", ["sample", "batch"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_nfe_of_adaptive_steps_equals_the_counted_evaluations(name, per, process):
    """The geometric process is stiff at t = 1: its first steps are rejected, and FSAL methods evaluate again."""
    sampler = Sampler(method=METHODS[name](), steps=Adaptive(rtol=1e-4, atol=1e-4, per=per), denoise="mean")
    counted, solution = count_calls(sampler, process)
    assert counted == int(solution.nfe)
    assert float(solution.nfe_mean) <= int(solution.nfe)
    assert int(solution.nfe_denoise) == 1


def test_coefficients_are_those_of_the_controller(x64):
    """A proportional part changes the steps, not what they converge to."""
    process, z_1, nfe = VP(), prior(VP(), (6, 2)), []
    for coefficients in (dict(pcoeff=0.0, icoeff=1.0), dict(pcoeff=0.4, icoeff=0.3)):
        steps = Adaptive(rtol=1e-6, atol=1e-6, **coefficients)
        solution = solve(Sampler(steps=steps, t_min=1e-3), process, z_1)
        np.testing.assert_allclose(solution.z_0, exact_map(process, z_1, 1e-3), atol=1e-4)
        nfe.append(int(solution.nfe))
    assert nfe[0] != nfe[1]


# First and last step


def test_the_mean_denoises_data_at_a_point_exactly(x64):
    """The expected data are the point itself; a step of the drift is closer to it than no step."""
    process, point = VP(), 0.7
    net = exact_eps(process, mean=point, variance=0.0)

    def end(denoise):
        sampler = Sampler(
            method=METHODS["EulerMaruyama"](), steps=Linear(steps=20), t_min=0.01, denoise=denoise
        )
        return sample(sampler, process, net, jax.random.key(0), (4, 2)).z_0

    np.testing.assert_allclose(end("mean"), point, atol=1e-12)
    assert jnp.abs(end("euler") - point).max() < 0.5 * jnp.abs(end("none") - point).max()


def test_temperature_scales_the_samples_of_centred_data(x64):
    """The flow of centred Gaussian data is linear."""
    process = VP()
    net = lambda z_t, t: linear.gaussian_eps(process, z_t, t)
    draw = lambda temperature: sample(
        Sampler(temperature=temperature), process, net, jax.random.key(0), (5, 2)
    )
    np.testing.assert_allclose(draw(0.5).z_0, 0.5 * draw(1.0).z_0, rtol=1e-4)


def test_stochastic_samples_are_determined_by_the_key():
    """In and out of jit; another key gives other samples."""
    process = VP()
    sampler = Sampler(method=METHODS["ShARK"](), steps=Quadratic(steps=10), t_min=1e-3)
    draw = lambda key: sample(sampler, process, exact_eps(process), key, (3, 2)).z_0
    first = jax.jit(draw)(jax.random.key(0))
    np.testing.assert_allclose(first, draw(jax.random.key(0)), rtol=1e-4, atol=1e-4)
    assert not np.allclose(first, draw(jax.random.key(1)), atol=0.1)


def test_samples_have_the_moments_of_the_data():
    """Over 4,000 samples, within five standard errors and the error of the solver."""
    process = MAIN["cld"]
    sampler = Sampler(method=METHODS["EulerMaruyama"](), steps=Quadratic(steps=300), t_min=1e-3)
    z_0 = jax.jit(lambda key: sample(sampler, process, exact_eps(process), key, (4000, 1)).z_0)(
        jax.random.key(0)
    )
    assert abs(float(z_0.mean()) - MEAN) < 5.0 * np.sqrt(VARIANCE / 4000) + 0.02
    assert abs(float(z_0.var()) - VARIANCE) < 5.0 * VARIANCE * np.sqrt(2.0 / 4000) + 0.01


def test_solves_are_differentiable(x64):
    """The gradient of a sample with respect to the mean of the data equals the finite difference."""
    process, z_1 = VP(), jnp.array([[0.3], [-1.0]])

    def end(shift):
        net = exact_eps(process)
        signal = lambda t: linear.kernel(process, t).signal
        moved = lambda z_t, t: net(z_t - shift * signal(t), t)
        sampler = Sampler(method=METHODS["Tsit5"](), steps=Linear(steps=40), t_min=1e-3)
        return solve_to_data(sampler, process, moved, z_1, NOISE).z_0.sum()

    slope = jax.jit(jax.grad(end))(0.0)
    numerical = (end(1e-4) - end(-1e-4)) / 2e-4
    np.testing.assert_allclose(slope, numerical, rtol=1e-6)


def test_any_diffrax_solver_can_be_a_method(x64):
    """With its cost."""
    process, z_1 = VP(), prior(VP(), (3, 1))
    method = Method(
        name="Kvaerno5", scheme=diffrax.Kvaerno5(), dynamics="ode", order=5, cost=Cost(1), adaptive=True
    )
    solution = solve(Sampler(method=method, steps=Adaptive(rtol=1e-6, atol=1e-6), t_min=1e-3), process, z_1)
    np.testing.assert_allclose(solution.z_0, exact_map(process, z_1, 1e-3), atol=1e-4)


# Refusals


def test_a_solve_beyond_max_steps_reports_failure():
    sampler = Sampler(steps=Adaptive(max_steps=3))
    assert not sample(sampler, VP(), exact_eps(VP()), jax.random.key(0), (4, 1)).success.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampler(method=METHODS["Euler"]()), "'Euler' has no error estimate .* a number of steps"),
        (lambda: Sampler(t_min=1.0), "t_min=1.0: give a time in"),
        (lambda: Sampler(denoise="once"), "denoise='once' is none of none, euler, mean"),
        (lambda: Sampler(temperature=0.0), "temperature=0.0"),
        (lambda: Adaptive(rtol=0.0), "rtol=0.0"),
        (lambda: Adaptive(per="image"), "per='image' is none of sample, batch, hardest"),
        (lambda: Adaptive(max_steps=0), "max_steps=0"),
        (lambda: Adaptive(pcoeff=0.0, icoeff=0.0), "icoeff=0.0.*their sum must be positive"),
        (lambda: Linear(steps=0), "steps=0: give a positive number"),
        (lambda: Times(values=(1.0, 0.5, 0.6)), "give at least two decreasing times"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# Encoding and interpolation


@pytest.mark.parametrize("name", ["vp", "cld"])
def test_encoding_and_sampling_is_the_identity(x64, name):
    process, z_0 = MAIN[name], jax.random.normal(jax.random.key(3), (5, 2)) * 0.5 + MEAN
    sampler = Sampler(steps=Adaptive(rtol=1e-9, atol=1e-9), t_min=1e-3)
    net = exact_eps(process)
    code = jax.jit(lambda z_0: solve_to_noise(sampler, process, net, jax.random.key(4), z_0))(z_0)
    np.testing.assert_allclose(solve(sampler, process, code).z_0, z_0, atol=1e-6)


def test_slerp_preserves_the_norm_and_reaches_both_ends(x64):
    a, b = (prior(VP(), (4, 3, 2), seed) for seed in (0, 1))
    norm = lambda z: np.linalg.norm(np.asarray(z).reshape(4, -1), axis=1)
    a, b = (z / norm(z)[:, None, None] for z in (a, b))
    for share in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(norm(slerp(a, b, jnp.full(4, share))), 1.0, rtol=1e-9)
    np.testing.assert_allclose(slerp(a, b, jnp.zeros(4)), a, atol=1e-12)
    np.testing.assert_allclose(slerp(a, b, jnp.ones(4)), b, atol=1e-12)
    np.testing.assert_allclose(slerp(a, a, jnp.full(4, 0.5)), a, atol=1e-9)
    angles = [np.arccos((np.asarray(a) * slerp(a, b, jnp.full(4, s))).sum((1, 2))) for s in (0.25, 0.5, 1.0)]
    np.testing.assert_allclose(angles[0] * 2, angles[1], rtol=1e-6)
    np.testing.assert_allclose(angles[1] * 2, angles[2], rtol=1e-6)
