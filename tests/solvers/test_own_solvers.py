"""The solvers of this package for processes of one coordinate: closed forms, identities, rounding, NFE."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.exact_gaussian import MEAN, VARIANCE, exact_eps, exact_map
from experiments.solver_orders import UnitDraws
from lsgm_jax.processes import linear
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.discrete import discrete_vp
from lsgm_jax.processes.ve import VE
from lsgm_jax.processes.vp import VP, GeometricVP, SubVP
from lsgm_jax.solvers.edm import MOST_CHURN
from lsgm_jax.solvers.grids import Linear, LogSNR, Quadratic, Times
from lsgm_jax.solvers.interval import between
from lsgm_jax.solvers.masked import masked
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, solve_to_data
from lsgm_jax.solvers.terms import KeyedNoise

PROCESSES = {
    "vp": VP(sigma2_0=0.01),
    "subvp": SubVP(),
    "ve": VE(),
    "geometric": GeometricVP(),
    "discrete": discrete_vp(steps=50, first=0.03, last=0.4),
    "discrete_cosine": discrete_vp(schedule="cosine", steps=50),
}
OWN = [name for name, make in METHODS.items() if make().dynamics == "own" and make().refuse(VP()) is None]
DETERMINISTIC = ["DDIM", "PLMS", "DEIS", "DPMSolverPP", "UniPC", "EDMHeun"]
NOISE = KeyedNoise(jax.random.key(7))


def start():
    return jnp.linspace(-2.0, 2.0, 5)[:, None]


@pytest.fixture(params=["vp", "ve", "discrete"])
def process(request):
    return PROCESSES[request.param]


def solve(method, process, grid, z_1, eps_net=None, noise=NOISE, t_min=0.1):
    sampler = Sampler(method=method, steps=grid, t_min=t_min)
    eps_net = exact_eps(process) if eps_net is None else eps_net
    return jax.jit(lambda z: solve_to_data(sampler, process, eps_net, z, noise).z_0)(z_1)


def alpha_sigma(process, t):
    signal, noise = linear.kernel(process, jnp.asarray(t))
    return signal[0], noise[0, 0]


def point_eps(process, point):
    """Noise prediction of data that are a single point."""
    return exact_eps(process, mean=point, variance=0.0)


def test_order_one_is_ddim(x64, process):
    grid = Quadratic(steps=6)
    ddim = solve(METHODS["DDIM"](), process, grid, start())
    for name in ("DEIS", "DPMSolverPP"):
        np.testing.assert_allclose(solve(METHODS[name](order=1), process, grid, start()), ddim, rtol=1e-11)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_one_step_is_exact_for_data_at_a_point(x64, process, name):
    """Noise and data are constant along the flow."""
    end = solve(METHODS[name](), process, Times(values=(0.8, 0.1)), start(), point_eps(process, 0.7))
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (alpha_sigma(process, t) for t in (0.1, 0.8))
    np.testing.assert_allclose(end, 0.7 * alpha_s + sigma_s / sigma_t * (start() - 0.7 * alpha_t), rtol=1e-10)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_draws_from_the_posterior_of_known_data(x64, process, eta):
    """With eta = 1, mean and variance are those of Bayes' rule; with any eta, the marginal at s is the kernel."""
    end = solve(
        METHODS["DDIM"](eta=eta),
        process,
        Times(values=(0.8, 0.1)),
        jnp.array([[1.1], [2.1], [1.1]]),
        point_eps(process, 0.7),
        noise=UnitDraws(),
    )[:, 0]
    mean, variance, slope = end[0], (end[2] - end[0]) ** 2, end[1] - end[0]
    (alpha_s, sigma_s), (_, sigma_t) = (alpha_sigma(process, t) for t in (0.1, 0.8))
    np.testing.assert_allclose(slope**2 * sigma_t**2 + variance, sigma_s**2, rtol=1e-10)
    if eta == 1.0:
        signal, noise = (float(m[0, 0]) for m in process.transition(jnp.asarray(0.1), jnp.asarray(0.8)))
        precision = 1.0 / sigma_s**2 + signal**2 / noise**2
        posterior = (0.7 * alpha_s / sigma_s**2 + signal * 1.1 / noise**2) / precision
        np.testing.assert_allclose([mean, variance], [posterior, 1.0 / precision], rtol=1e-9)


def test_ancestral_is_ddim_with_eta_one_and_the_ancestral_predictor():
    ours = solve(METHODS["Ancestral"](), VP(), Linear(steps=5), start())
    for other in (
        METHODS["DDIM"](eta=1.0),
        METHODS["PredictorCorrector"](predictor="ancestral", corrections=0),
    ):
        np.testing.assert_allclose(ours, solve(other, VP(), Linear(steps=5), start()), rtol=2e-5, atol=2e-6)


def test_temperature_scales_the_noise(x64):
    ends = [
        solve(METHODS["DDIM"](eta=1.0, temperature=temperature), VP(), Linear(steps=5), start())
        for temperature in (1.0, 0.5)
    ]
    silent = solve(METHODS["DDIM"](eta=1.0), VP(), Linear(steps=5), start(), noise=Silence())
    np.testing.assert_allclose(ends[1] - silent, 0.5 * (ends[0] - silent), rtol=1e-9)


class Silence:
    def draw(self, step, part, like):
        return jnp.zeros_like(like)


@pytest.mark.parametrize("name", ["DDIM", "Ancestral"])
def test_clipped_data_stay_within_the_bound(name):
    """At zero noise the last state is the predicted data; a bound above all values has no effect."""
    grid = Times(values=(1.0, 0.5, 0.0))
    free, wide, clipped = (
        solve(METHODS[name](clip=clip), VP(), grid, 3.0 * start()) for clip in (None, 100.0, 1.2)
    )
    assert jnp.abs(free).max() > 1.3
    np.testing.assert_array_equal(wide, free)
    np.testing.assert_allclose(clipped, jnp.clip(clipped, -1.2, 1.2), rtol=1e-6)


def test_heun_of_edm_is_heun_in_the_noise_level(x64):
    """For VE, where sigma / alpha is the standard deviation."""
    process, times = VE(), (1.0, 0.7, 0.5, 0.2)
    z, eps_net = start(), exact_eps(process)
    for t, s in itertools.pairwise(times):
        high, low = (linear.sigma(process, jnp.full(5, time)) for time in (t, s))
        slope = eps_net(z, jnp.full(5, t))
        trial = z + (low - high)[:, None] * slope
        z = z + 0.5 * (low - high)[:, None] * (slope + eps_net(trial, jnp.full(5, s)))
    np.testing.assert_allclose(
        solve(METHODS["EDMHeun"](), process, Times(values=times), start()), z, rtol=1e-10
    )


def test_churn_is_limited_to_its_bounds(x64):
    process = VP()
    grid, ratio = Linear(steps=4), jnp.exp(-0.5 * linear.log_snr(process, jnp.asarray(0.5)))
    calm, everywhere, late, never = (
        solve(METHODS["EDMHeun"](**churn), process, grid, start())
        for churn in (
            {},
            dict(churn=0.3),
            dict(churn=0.3, most=float(ratio)),
            dict(churn=0.3, most=1e-9),
        )
    )
    np.testing.assert_allclose(never, calm, rtol=1e-12)
    assert jnp.abs(everywhere - calm).min() > 0
    assert jnp.abs(late - everywhere).min() > 0


def test_corrections_preserve_the_moments_of_the_data():
    """For two samples of 10000 dimensions. A wrong prediction for the second one does not change the first."""
    process, shape = VP(), (2, 10_000)
    z_1 = linear.sample_prior(process, jax.random.key(1), shape)
    exact = exact_eps(process)
    wrong = lambda z_t, t: exact(z_t, t) * jnp.array([[1.0], [3.0]])
    method = METHODS["PredictorCorrector"](corrections=2, snr=0.1)
    ends = [solve(method, process, Linear(steps=60), z_1, eps_net, t_min=1e-3) for eps_net in (exact, wrong)]
    np.testing.assert_allclose(ends[0][0].mean(), MEAN, atol=0.03)
    np.testing.assert_allclose(ends[0].std(axis=1), VARIANCE**0.5, rtol=0.04)
    np.testing.assert_allclose(ends[1][0], ends[0][0], rtol=1e-4, atol=1e-4)
    assert jnp.abs(ends[1][1] - ends[0][1]).max() > 0.1


@pytest.mark.parametrize("name", PROCESSES)
def test_intervals_are_accurate_in_float32(name):
    """Also short ones, for which differences of the kernels at both ends would cancel."""
    t = np.tile(np.float32([1e-4, 0.01, 0.3, 0.9, 1.0]), 3)
    s = t * np.repeat(np.float32([0.999, 0.99, 0.5]), 5)

    def coefficients():
        interval = between(PROCESSES[name], jnp.asarray(s, float), jnp.asarray(t, float))
        return interval.fall() / interval.mean, interval.log_snr_gain()

    single = coefficients()
    with jax.enable_x64(True):
        double = coefficients()
    # The chain counts time in steps, and the fractional part of a step is less accurate than the time.
    np.testing.assert_allclose(single, double, rtol=1e-4 if "discrete" in name else 3e-6)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_float32_is_accurate_to_rounding(name):
    """Down to t_min = 1e-4 with many short steps, where differences of kernels would cancel."""
    grid = LogSNR(steps=60) if name in ("DPMSolverPP", "UniPC") else Quadratic(steps=60)
    single = solve(METHODS[name](), VP(), grid, start(), t_min=1e-4)
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        double = solve(METHODS[name](), VP(), grid, jnp.asarray(start(), float), t_min=1e-4)
    np.testing.assert_allclose(single, double, atol=1e-5)


@pytest.mark.parametrize("name", ["DDIM", "Ancestral", "PLMS", "DEIS", "DPMSolverPP", "UniPC", "EDMHeun"])
def test_a_step_to_zero_noise_is_finite(name):
    """At t = 0, sigma = 0 and the signal-to-noise ratio is infinite."""
    grid = Times(values=(1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.01, 0.0))
    np.testing.assert_allclose(solve(METHODS[name](), VP(), grid, start()).std(), VARIANCE**0.5, rtol=1.0)


@pytest.mark.parametrize("name", OWN)
def test_nfe_equals_the_counted_evaluations(name):
    process, calls = VP(), []

    def counting(z_t, t):
        jax.debug.callback(lambda: calls.append(1))  # no arguments: fires once for the whole batch
        return exact_eps(process)(z_t, t)

    sampler = Sampler(method=METHODS[name](), steps=Linear(steps=7), t_min=1e-3)
    solution = jax.block_until_ready(
        jax.jit(lambda z: solve_to_data(sampler, process, counting, z, NOISE))(start())
    )
    jax.effects_barrier()
    assert len(calls) == int(solution.nfe) == round(float(solution.nfe_mean))
    assert solution.success.all()


def test_corrections_are_counted():
    assert METHODS["PredictorCorrector"](corrections=3).cost.per_step == 4


@pytest.mark.parametrize("name", OWN)
def test_phases_are_refused(name):
    sampler = Sampler(method=METHODS[name](), steps=Linear(steps=7))
    with pytest.raises(ValueError, match=f"{name}.*one coordinate, not for CLD: use SSCS"):
        solve_to_data(sampler, CLD(), exact_eps(CLD()), start(), NOISE)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("DDIM", dict(eta=1.5), "eta=1.5"),
        ("DDIM", dict(clip=0.0), "clip=0.0"),
        ("Ancestral", dict(temperature=-1.0), "temperature=-1.0"),
        ("DEIS", dict(order=4), "order=4 of DEIS: choose one of 1, 2, 3"),
        ("UniPC", dict(order=1), "choose one of 2, 3"),
        ("EDMHeun", dict(churn=2 * MOST_CHURN), "S_churn / steps"),
        ("EDMHeun", dict(least=2.0, most=1.0), "least=2.0 exceeds"),
        ("PredictorCorrector", dict(corrections=-1), "corrections=-1"),
        ("PredictorCorrector", dict(snr=0.0), "snr=0.0"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](**settings)


@pytest.mark.parametrize("name", ["DDIM", "UniPC"])
def test_inpainting_preserves_the_known_data(name):
    """The last step starts from the known data with little noise; the unknown part follows the data distribution."""
    known, keep = jnp.array([[3.0, 3.0]]), jnp.array([[1.0, 0.0]])
    method = masked(METHODS[name](), keep, known)
    end = solve(method, VP(), LogSNR(steps=30), jnp.zeros((1, 2)), t_min=1e-4)
    np.testing.assert_allclose(end[0, 0], 3.0, atol=0.1)
    np.testing.assert_allclose(end[0, 1], MEAN, atol=0.1)


def test_inpainting_needs_a_reverse_solver():
    with pytest.raises(
        ValueError, match=r"'Tsit5' cannot keep a known part of the data: use .*--solver=DDIM"
    ):
        masked(METHODS["Tsit5"](), jnp.ones(()), start())


@pytest.mark.parametrize("name", PROCESSES)
def test_deis_finds_the_exact_map_of_every_process(x64, name):
    process = PROCESSES[name]
    end = solve(METHODS["DEIS"](), process, LogSNR(steps=50), start(), t_min=0.02)
    np.testing.assert_allclose(end, exact_map(process, start(), 0.02), atol=5e-3)
