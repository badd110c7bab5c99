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


def test_clipping_leaves_the_noise_prediction_unless_it_is_derived_again(x64, process):
    """As in diffusers' DDIM: its option `use_clipped_model_output` is our `rederive_eps`."""
    z, t, s = 3.0 * start(), 0.8, 0.3
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (alpha_sigma(process, time) for time in (s, t))
    eps_hat = exact_eps(process)(z, jnp.full(5, t))
    data = jnp.clip((z - sigma_t * eps_hat) / alpha_t, -1.2, 1.2)
    again = (z - alpha_t * data) / sigma_t
    for rederive, noise in ((False, eps_hat), (True, again)):
        method = METHODS["DDIM"](clip=1.2, rederive_eps=rederive)
        end = solve(method, process, Times(values=(t, s)), z)
        np.testing.assert_allclose(end, alpha_s * data + sigma_s * noise, rtol=1e-9, atol=1e-9)
    assert jnp.abs(eps_hat - again).max() > 0.01


def test_third_order_is_the_published_or_the_exact_one(x64):
    """Three steps by the published formulas of 2M and 3M (Lu et al. 2022b), in half log-SNR `lam`."""
    process, times = VP(), (0.9, 0.7, 0.5, 0.3)
    lam = [0.5 * float(linear.log_snr(process, jnp.asarray(t))) for t in times]
    z, data, eps_net = start(), [], exact_eps(process)
    for factor, third in ((0.5, "published"), (1.0, "exact")):
        z, data = start(), []
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            (alpha_s, sigma_s), (alpha_t, sigma_t) = (alpha_sigma(process, time) for time in (s, t))
            data = [(z - sigma_t * eps_net(z, jnp.full(5, t))) / alpha_t, *data]
            h, fall = lam[i + 1] - lam[i], np.expm1(lam[i] - lam[i + 1])
            rise = -fall * data[0]
            if i > 0:
                slope = (data[0] - data[1]) * h / (lam[i] - lam[i - 1])
            if i == 1:
                rise = rise - 0.5 * fall * slope
            if i == 2:
                before = (data[1] - data[2]) * h / (lam[1] - lam[0])
                r0, r1 = ((lam[k] - lam[k - 1]) / h for k in (2, 1))
                first = slope + r0 / (r0 + r1) * (slope - before)
                second = 2.0 * factor * (slope - before) / (r0 + r1)
                rise = rise + (fall / h + 1.0) * first - ((fall + h) / h**2 - 0.5) * second
            z = sigma_s / sigma_t * z + alpha_s * rise
        method = METHODS["DPMSolverPP"](order=3, third=third, lower_order_final=False)
        np.testing.assert_allclose(solve(method, process, Times(values=times), start()), z, rtol=1e-9)


@pytest.mark.parametrize("name", ["DPMSolverPP", "UniPC"])
def test_the_order_falls_in_the_last_step(x64, name):
    """The last of two steps is DDIM's, from the corrected state in UniPC; two single steps have order 1 anyway."""
    process, (t, s, r) = VP(), (0.9, 0.6, 0.2)
    falling, constant = (
        solve(METHODS[name](order=2, lower_order_final=falls), process, Times(values=(t, s, r)), start())
        for falls in (True, False)
    )
    assert jnp.abs(falling - constant).max() > 1e-3
    if name == "DPMSolverPP":
        ddim = solve(METHODS["DDIM"](), process, Times(values=(t, s, r)), start())
        np.testing.assert_allclose(falling, ddim, rtol=1e-11)


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


@pytest.mark.parametrize("norms", ["batch", "sample"])
def test_corrections_preserve_the_moments_of_the_data(norms):
    """For two samples of 10000 dimensions. A wrong prediction for the second changes the first by the batch's norms."""
    process, shape = VP(), (2, 10_000)
    z_1 = linear.sample_prior(process, jax.random.key(1), shape)
    exact = exact_eps(process)
    wrong = lambda z_t, t: exact(z_t, t) * jnp.array([[1.0], [3.0]])
    method = METHODS["PredictorCorrector"](corrections=2, snr=0.1, norms=norms)
    ends = [solve(method, process, Linear(steps=60), z_1, eps_net, t_min=1e-3) for eps_net in (exact, wrong)]
    np.testing.assert_allclose(ends[0][0].mean(), MEAN, atol=0.03)
    np.testing.assert_allclose(ends[0].std(axis=1), VARIANCE**0.5, rtol=0.04)
    assert np.allclose(ends[1][0], ends[0][0], rtol=1e-4, atol=1e-4) == (norms == "sample")
    assert jnp.abs(ends[1][1] - ends[0][1]).max() > 0.1


class Numbered:
    """Noise that is 1 in the predictor, and 2 in the first correction."""

    def draw(self, step, part, like):
        return jnp.full_like(like, 1.0 + part)


def test_a_correction_is_the_published_langevin_step(x64):
    """Song et al. 2021, Algorithm 5, on the chain's own steps: alpha is 1 - beta of the corrected node."""
    process, z = PROCESSES["discrete"], start()
    t, s = 0.6, 0.58  # timesteps 29 and 28
    beta, alpha = process.betas[29], 1.0 - process.betas[28]
    exact = exact_eps(process)
    score = lambda z, time: -exact(z, jnp.full(5, time)) / alpha_sigma(process, time)[1]
    z_s = (2.0 - (1.0 - beta) ** 0.5) * z + beta * score(z, t) + beta**0.5
    pull = score(z_s, s)
    size = 2.0 * alpha * (0.16 * 2.0 / jnp.abs(pull).mean()) ** 2
    end = solve(METHODS["PredictorCorrector"](), process, Times(values=(t, s)), z, noise=Numbered())
    np.testing.assert_allclose(end, z_s + size * pull + jnp.sqrt(2.0 * size) * 2.0, rtol=1e-9)


def test_corrections_throw_no_sample_out():
    """In the plane the score of some samples is near zero; steps by the norms of each would be huge there."""
    process = VP()
    z_1 = linear.sample_prior(process, jax.random.key(1), (2000, 1))
    method = METHODS["PredictorCorrector"]()
    far = jnp.abs(solve(method, process, Linear(steps=50), z_1, t_min=1e-3) - MEAN)
    assert far.max() < 6.0 * VARIANCE**0.5


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
        ("DPMSolverPP", dict(third="half"), "third='half' is none of published, exact"),
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
