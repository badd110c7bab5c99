"""Theorems of the linear SDE: every process satisfies its moment equations, exactly and in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lsgm_jax.arrays import as_state, coordinates
from lsgm_jax.processes import linear, matrices
from lsgm_jax.processes.cld import CLD, velocity_eps
from lsgm_jax.processes.ve import VE
from lsgm_jax.processes.vp import VP, GeometricVP, SubVP
from tests.process_examples import PROCESSES


@pytest.fixture(params=PROCESSES, ids=str)
def process(request):
    return PROCESSES[request.param]


def times(low=1e-5):
    return jnp.concatenate([jnp.geomspace(low, 0.1, 30), jnp.linspace(0.11, 1.0, 30)])


def derivative(function, t):
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def covariance(lower):
    return lower @ lower.mT


def kernel_covariance(process, t):
    return covariance(linear.kernel(process, t).noise)


def noise_matrix(process, t):
    """G G^T: noise enters the last coordinate."""
    g2 = process.diffusion(t) ** 2
    size = process.drift(t).shape[-1]
    return g2[..., None, None] * jnp.zeros((size, size)).at[-1, -1].set(1.0)


def test_mean_obeys_the_drift(x64, process):
    t, s = times(), jnp.zeros_like(times())
    slope = derivative(lambda t: process.transition(s, t).mean, t)
    expected = process.drift(t) @ process.transition(s, t).mean
    np.testing.assert_allclose(slope, expected, rtol=1e-9, atol=1e-12 * float(abs(expected).max()))


def test_variance_obeys_the_lyapunov_equation(x64, process):
    """S' = F S + S F^T + G G^T, up to rounding of its terms."""
    t = times()
    drift, cov = process.drift(t), kernel_covariance(process, t)
    slope = derivative(lambda t: kernel_covariance(process, t), t)
    terms = [drift @ cov, cov @ drift.mT, noise_matrix(process, t)]
    size = sum(abs(term) for term in terms) + jnp.sqrt(
        jnp.einsum("tii,tjj->tij", *[sum(abs(term) for term in terms)] * 2)
    )
    assert (abs(slope - sum(terms)) <= 1e-9 * size).all()


def test_the_kernel_at_time_zero_is_the_data_with_the_initial_variance(x64, process):
    signal, noise = linear.kernel(process, jnp.zeros(()))
    np.testing.assert_allclose(signal, jnp.eye(len(signal))[0], atol=1e-14)
    np.testing.assert_allclose(
        covariance(noise), jnp.diag(jnp.asarray(process.initial_variance())), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("s", [1e-4, 0.03, 0.6])
def test_transitions_compose(x64, process, s):
    """From 0 to s and from s to t is from 0 to t (Chapman-Kolmogorov)."""
    t = jnp.linspace(s, 1.0, 12)
    s = jnp.full_like(t, s)
    zero = jnp.zeros_like(t)
    first, second, direct = (process.transition(*ends) for ends in ((zero, s), (s, t), (zero, t)))
    np.testing.assert_allclose(second.mean @ first.mean, direct.mean, rtol=1e-10, atol=1e-13)
    composed = second.mean @ covariance(first.noise) @ second.mean.mT + covariance(second.noise)
    np.testing.assert_allclose(composed, covariance(direct.noise), rtol=1e-10, atol=1e-14)


def test_a_transition_of_length_zero_is_the_identity(precision, process):
    t = jnp.asarray([1e-5, 0.2, 1.0])
    mean, noise = process.transition(t, t)
    np.testing.assert_allclose(mean, jnp.broadcast_to(jnp.eye(mean.shape[-1]), mean.shape), atol=1e-7)
    assert (noise == 0.0).all()


@pytest.mark.parametrize("name", ["vp", "geometric", "vp_initial_variance", "cosine"])
def test_variance_is_preserved(x64, name):
    """Data of `data_variance` plus the initial variance keep variance one."""
    process, t = PROCESSES[name], times()
    signal, noise = linear.kernel(process, t)
    total = linear.data_variance(process) * signal[:, 0] ** 2 + noise[:, 0, 0] ** 2
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)


@pytest.mark.parametrize("process", [p for n, p in PROCESSES.items() if n.startswith("cld")], ids=str)
def test_cld_is_the_matrix_exponential(x64, process):
    """The mean map is scipy's matrix exponential A, and the covariance is P - A P A^T for the stationary P."""
    stationary = np.diag([1.0, process.mass])
    for t in jnp.asarray([1e-3, 0.1, 0.7, 1.0]):
        generator = process.drift(t) / process.beta(t) * process.int_beta(jnp.zeros(()), t)
        mean = scipy.linalg.expm(np.asarray(generator))
        transition = process.transition(jnp.zeros(()), t)
        np.testing.assert_allclose(transition.mean, mean, rtol=1e-11, atol=1e-14)
        cov = stationary - mean @ stationary @ mean.T
        np.testing.assert_allclose(covariance(transition.noise), cov, rtol=1e-10, atol=1e-14)


def test_cld_converges_to_its_prior(x64):
    """After a long time the state has the distribution of the prior, for any damping."""
    for friction in (None, 0.3, 4.0):
        process = CLD(beta_min=60.0, beta_max=60.0, friction=friction)
        signal, noise = linear.kernel(process, jnp.ones(()))
        assert abs(signal).max() < 1e-6
        np.testing.assert_allclose(covariance(noise), jnp.diag(jnp.asarray([1.0, process.mass])), atol=1e-6)


@pytest.mark.parametrize(
    "process", [VP(), VP(sigma2_0=0.01), GeometricVP(), SubVP(), SubVP(sigma2_0=0.02), VE()]
)
def test_time_of_log_variance_inverts(x64, process):
    t = times(1e-4)
    t = t[
        derivative(lambda t: linear.sigma(process, t), t) > 0.0
    ]  # a sub-VPSDE's variance at time 0 first shrinks
    log_variance = 2.0 * jnp.log(linear.sigma(process, t))
    np.testing.assert_allclose(process.time_of_log_variance(log_variance), t, rtol=1e-7)


def quantities(process, t):
    """All quantities of a process that training and sampling use, as values with a meaningful relative error."""
    zero = jnp.zeros_like(t)
    signal, noise = linear.kernel(process, t)
    return {
        "drift": process.drift(t),
        "diffusion": process.diffusion(t),
        "mean": process.transition(zero, t).mean,
        "noise of the transition": process.transition(zero, t).noise,
        "signal": signal,
        "noise": noise,
        "snr": jnp.exp(0.5 * linear.log_snr(process, t)),
        "gaussian error": linear.gaussian_error(process, t),
    }


@pytest.mark.parametrize(
    "name", ["vp", "vp_initial_variance", "geometric", "sub_vp", "ve", "cld", "cld_linear_beta"]
)
def test_float32_is_accurate_to_rounding(name):
    """The error is at most 1e-6 from t = 1e-5 to 1, relative to the entry, or for a matrix to its row.

    Entries of CLD change sign, and there is no relative error at zero.
    """
    process, t = PROCESSES[name], np.asarray(times(), np.float32)
    single = quantities(process, jnp.asarray(t))
    with jax.enable_x64(True):
        exact = quantities(process, jnp.asarray(t, jnp.float64))
    for what, value in exact.items():
        scale = np.abs(np.asarray(value))
        if scale.ndim == 3:
            scale = scale.max(axis=-1, keepdims=True)
        error = np.abs(np.asarray(single[what], np.float64) - np.asarray(value))
        assert (error <= 1e-6 * scale).all(), what


def test_float32_velocity_noise_is_accurate():
    """L_vv, the denominator of the score, is much smaller than the other entry of its row at small times."""
    t = np.geomspace(1e-5, 1.0, 200).astype(np.float32)
    for name in ("cld", "cld_linear_beta"):
        single = np.asarray(linear.sigma(PROCESSES[name], jnp.asarray(t)), np.float64)
        with jax.enable_x64(True):
            exact = np.asarray(linear.sigma(PROCESSES[name], jnp.asarray(t, jnp.float64)))
        np.testing.assert_allclose(single, exact, rtol=1e-6)


def test_moments_of_samples(x64, process):
    """`perturb` has the moments of the kernel, and `move` then has those of the kernel at a later time."""
    keys, count = jax.random.split(jax.random.key(0), 2), 100_000
    z_0 = jnp.full((count, 1), 1.5)
    s, t = jnp.full(count, 0.2), jnp.full(count, 0.5)
    z_s = linear.perturb(process, z_0, s, linear.unit_noise(process, keys[0], z_0.shape))
    z_t = linear.move(process, z_s, s, t, linear.unit_noise(process, keys[1], z_0.shape))
    for state, time in ((z_s, s), (z_t, t)):
        signal, noise = linear.kernel(process, time[0])
        drawn, cov = jnp.concatenate(coordinates(state), axis=-1), covariance(noise)
        spread = jnp.sqrt(jnp.diag(cov) / count)
        assert (abs(drawn.mean(0) - 1.5 * signal) < 5 * spread).all()
        size = jnp.sqrt(jnp.outer(jnp.diag(cov), jnp.diag(cov)))
        assert (abs(jnp.atleast_2d(jnp.cov(drawn.T)) - cov) < 5 * np.sqrt(2 / count) * size).all()


def marginal_covariance(process, t):
    signal, noise = linear.kernel(process, t)
    return covariance(noise) + linear.data_variance(process) * jnp.outer(signal, signal)


def test_gaussian_eps_is_the_score_of_gaussian_data(x64, process):
    """The score of the marginal in the last coordinate is the automatic derivative of its log density."""
    for t in (0.01, 0.2, 0.9):
        cov = marginal_covariance(process, jnp.asarray(t))
        z_t = jnp.asarray([[0.3, -1.2], [2.0, 0.4]])[:, : len(cov)]
        log_marginal = lambda z, cov=cov: jax.scipy.stats.multivariate_normal.logpdf(
            z, jnp.zeros(len(z)), cov
        )
        exact = jax.vmap(jax.grad(log_marginal))(z_t)[:, -1:]
        state = as_state(jnp.split(z_t, len(cov), axis=-1))
        time = jnp.full(2, t)
        score = linear.score_of_eps(process, linear.gaussian_eps(process, state, time), time)
        np.testing.assert_allclose(score, exact, rtol=1e-10)


def test_gaussian_error_is_the_error_of_gaussian_eps(x64, process):
    """Over draws of data and noise; the relative error of a mean of squares is sqrt(2 / count)."""
    keys, count = jax.random.split(jax.random.key(1)), 100_000
    z_0 = jnp.sqrt(linear.data_variance(process)) * jax.random.normal(keys[0], (count, 1))
    eps = linear.unit_noise(process, keys[1], z_0.shape)
    for time in (0.02, 0.3, 0.8):
        t = jnp.full(count, time)
        error = coordinates(eps)[-1] - linear.gaussian_eps(process, linear.perturb(process, z_0, t, eps), t)
        exact = linear.gaussian_error(process, jnp.asarray(time))
        np.testing.assert_allclose((error**2).mean(), exact, rtol=5 * np.sqrt(2 / count))


def test_velocity_eps_is_the_score_of_the_velocity_for_data_at_the_origin(x64):
    process, t = PROCESSES["cld"], jnp.asarray([0.1, 0.4])
    z_t = as_state([jnp.asarray([[0.7], [-0.3]]), jnp.asarray([[0.2], [0.9]])])
    s_vv = kernel_covariance(process, t)[:, 1, 1, None]
    score = linear.score_of_eps(process, velocity_eps(process, z_t, t), t)
    np.testing.assert_allclose(score, -z_t.v / s_vv, rtol=1e-12)


def test_snr_is_the_fisher_information_about_the_data(x64, process):
    """It is a^T S^-1 a, with the inverse of the full covariance."""
    t = jnp.asarray([1e-3, 0.1, 0.5])
    signal, noise = linear.kernel(process, t)
    exact = jnp.einsum("ti,tij,tj->t", signal, jnp.linalg.inv(covariance(noise)), signal)
    np.testing.assert_allclose(jnp.exp(linear.log_snr(process, t)), exact, rtol=1e-8)


def test_reverse_sde_and_ode_differ_by_half_the_score(x64, process):
    t, noise = jnp.array([0.4]), linear.unit_noise(process, jax.random.key(3), (1, 2))
    eps_hat = jnp.array([[0.1, 0.5]])
    forward = coordinates(matrices.matvec(process.drift(t), noise))
    score_term = process.diffusion(t)[:, None] ** 2 * linear.score_of_eps(process, eps_hat, t)
    for share, drift in ((1.0, linear.reverse_drift), (0.5, linear.probability_flow)):
        *others, last = coordinates(drift(process, noise, eps_hat, t))
        np.testing.assert_allclose(forward[-1] - last, share * score_term, rtol=1e-10)
        for before, after in zip(forward[:-1], others, strict=True):
            np.testing.assert_array_equal(before, after)


def test_probability_flow_has_the_marginals_of_gaussian_data(x64, process):
    """The covariance under the linear flow, C' = M C + C M^T, is that of the SDE (without a solver)."""
    t = jnp.asarray([0.03, 0.4, 0.9])
    for time in t:
        cov, size = marginal_covariance(process, time), process.drift(time).shape[-1]
        basis = as_state([jnp.eye(size)[:, i : i + 1] for i in range(size)])
        times_ = jnp.full(size, time)
        flow = linear.probability_flow(process, basis, linear.gaussian_eps(process, basis, times_), times_)
        matrix = jnp.concatenate(coordinates(flow), axis=-1).T
        slope = derivative(lambda s: marginal_covariance(process, s), time)
        scale = float(abs(process.drift(time) @ cov).max() + process.diffusion(time) ** 2)
        np.testing.assert_allclose(matrix @ cov + cov @ matrix.T, slope, rtol=1e-9, atol=1e-9 * scale)


def test_noise_entropy_is_the_entropy_of_the_kernel(x64, process):
    t = jnp.array(0.2)
    cov = np.asarray(kernel_covariance(process, t))
    exact = scipy.stats.multivariate_normal(np.zeros(len(cov)), cov).entropy()
    np.testing.assert_allclose(linear.noise_entropy(process, t), exact, rtol=1e-9)


def test_samples_of_the_prior_have_its_density(x64, process):
    z_1 = coordinates(linear.sample_prior(process, jax.random.key(2), (50_000, 2)))
    variances = process.prior_variance()
    for drawn, variance in zip(z_1, variances, strict=True):
        np.testing.assert_allclose(jnp.cov(drawn.T) / variance, jnp.eye(2), atol=0.03)
    exact = sum(
        jax.scipy.stats.norm.logpdf(drawn, scale=jnp.sqrt(variance)).sum(-1)
        for drawn, variance in zip(z_1, variances, strict=True)
    )
    np.testing.assert_allclose(linear.prior_log_prob(process, as_state(z_1)), exact, rtol=1e-12)


def test_prior_is_the_marginal_at_the_end(x64, process):
    """Up to the signal that remains at t = 1."""
    end = marginal_covariance(process, jnp.ones(()))
    prior = jnp.diag(jnp.asarray(process.prior_variance()))
    left = jnp.exp(linear.log_snr(process, jnp.ones(())))
    assert (abs(end - prior) <= (2.0 * jnp.sqrt(left) + 1e-12) * jnp.trace(prior)).all()


def test_auxiliary_coordinates_are_gaussian(x64, process):
    """They have the initial variance at time 0, and the variance of the kernel later."""
    z_0 = jnp.ones((4, 3))
    for t in (0.0, 0.3):
        state, log_prob = linear.add_auxiliary(process, jax.random.key(0), z_0, t)
        first, *others = coordinates(state)
        np.testing.assert_array_equal(first, z_0)
        noise = linear.kernel(process, jnp.asarray(t)).noise
        variances = process.initial_variance()[1:] if t == 0.0 else jnp.diag(noise @ noise.T)[1:]
        exact = jnp.zeros(4)
        for value, variance in zip(others, variances, strict=True):
            exact += jax.scipy.stats.norm.logpdf(value, scale=jnp.sqrt(variance)).sum(-1)
        np.testing.assert_allclose(log_prob, exact, rtol=1e-12)


@pytest.mark.parametrize(
    "process", [VP(), GeometricVP(), SubVP(), VE(), CLD()], ids=lambda p: type(p).__name__
)
def test_a_process_may_be_traced(process):
    """Its fields can be learned: they have gradients, and traced values are not checked."""

    def objective(process):
        return linear.log_snr(process, jnp.asarray(0.3)) + linear.sigma(process, jnp.asarray(0.7))

    numbers = jax.tree.map(jnp.asarray, process)
    slopes = jax.jit(jax.grad(objective))(numbers)
    finite = [bool(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(slopes)]
    assert sum(finite) >= 2


def test_the_eps_of_published_cld_widens_every_kernel_and_no_transition(x64):
    """The recorded kernels of the original hold it, too (`cld_kernel`); 0 changes no bit."""
    t, exact, widened = times(), CLD(), CLD(numerical_eps=1e-6)
    expected = kernel_covariance(exact, t) + 1e-6 * jnp.eye(2)
    np.testing.assert_allclose(kernel_covariance(widened, t), expected, rtol=1e-12)
    for one, other in zip(exact.transition(t, t + 0.1), widened.transition(t, t + 0.1), strict=True):
        np.testing.assert_array_equal(one, other)
    # -1 / sigma is the score per output of the network: 1.56 times less where published samplers end.
    at = jnp.array([1e-3])
    np.testing.assert_allclose(linear.sigma(widened, at) / linear.sigma(exact, at), 1.5576, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (VP, {"beta_min": 0.0}),
        (VP, {"beta_min": 3.0, "beta_max": 2.0}),
        (SubVP, {"sigma2_0": 1.0}),
        (GeometricVP, {"sigma2_max": 1.1}),
        (VE, {"sigma2_min": 0.0}),
        (CLD, {"mass": 0.0}),
        (CLD, {"friction": -1.0}),
        (CLD, {"v0_var_scale": -0.1}),
        (CLD, {"numerical_eps": -1e-6}),
    ],
)
def test_fields_out_of_range_are_refused(make, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        make(**bad)
