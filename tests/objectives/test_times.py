"""Time densities: they integrate to one, their samples follow them, and every weighting x density agrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.diffusions.vp import VP, GeometricVP
from lsgm_jax.objectives import times, weights

PROCESSES = {"vp": VP(), "geometric": GeometricVP()}
DENSITIES = {
    "uniform": times.Uniform(t_min=1e-3),
    "log_variance_uniform": times.LogVarianceUniform(t_min=1e-3),
    "variance_uniform": times.VarianceUniform(t_min=1e-3),
    "defensive": times.Defensive(t_min=1e-3),
}
WEIGHTINGS = {name: getattr(weights, name) for name in ("likelihood", "reweighted", "unweighted")}


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


@pytest.fixture(params=DENSITIES)
def density(request):
    return DENSITIES[request.param]


def grid(density, count=200_001):
    """Nodes that are dense where the densities are steep."""
    return jnp.exp(jnp.linspace(jnp.log(density.t_min), 0.0, count))


def test_density_integrates_to_one(x64, process, density):
    t = grid(density)
    np.testing.assert_allclose(jnp.trapezoid(density.density(process, t), t), 1.0, rtol=1e-6)


def test_samples_follow_the_density(x64, process, density):
    """Shares of a dense regular grid of u that land in an interval equal the density's integral over it."""
    drawn = density.quantile(process, (jnp.arange(400_000) + 0.5) / 400_000)
    t = grid(density)
    r = density.density(process, t)
    cumulative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(jnp.diff(t) * (r[1:] + r[:-1]) / 2)])
    for bound in (2e-3, 0.01, 0.1, 0.5, 0.9):
        np.testing.assert_allclose((drawn <= bound).mean(), jnp.interp(bound, t, cumulative), atol=2e-5)
    assert drawn.min() >= density.t_min - 1e-12
    assert drawn.max() <= 1.0 + 1e-12


@pytest.mark.parametrize("name", ["uniform", "log_variance_uniform", "variance_uniform"])
def test_quantile_slope_is_the_inverse_density(x64, process, name):
    density = DENSITIES[name]
    u = jnp.linspace(0.001, 0.999, 50)
    t, slope = jax.jvp(lambda u: density.quantile(process, u), (u,), (jnp.ones_like(u),))
    np.testing.assert_allclose(slope * density.density(process, t), 1.0, rtol=1e-7)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_density_estimates_the_same_integral(x64, process, density, weighting):
    """E[lambda / r * f] equals the integral of lambda f, within four standard errors, for an f that varies with t."""
    weight = WEIGHTINGS[weighting]

    def error(t):  # shaped like a denoising error: it vanishes as t -> 1
        return process.alpha(t) ** 2 * (1.0 + 0.5 * jnp.sin(5.0 * t))

    t = grid(density)
    exact = jnp.trapezoid(weight(process, t) * error(t), t)
    draws = density.quantile(process, jax.random.uniform(jax.random.key(0), (200_000,)))
    values = weight(process, draws) / density.density(process, draws) * error(draws)
    assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(len(values)) + 1e-6 * exact


def test_log_variance_uniform_is_optimal_for_the_likelihood_weight(x64, process):
    """With the exact score of Normal data the ratio is constant: no other density has less variance."""
    t = jnp.linspace(1e-3, 1.0, 100)
    exact_error = 1.0 - jnp.exp(process.log_variance(t))  # E|eps - eps_hat|^2 per dimension for N(0, 1) data
    ratio = (
        weights.likelihood(process, t) * exact_error / DENSITIES["log_variance_uniform"].density(process, t)
    )
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-8)


def test_defensive_bounds_the_ratio(x64, process):
    t = jnp.linspace(1e-3, 1.0, 1000)
    density = times.Defensive(t_min=1e-3, uniform_share=0.1)
    ratio = weights.likelihood(process, t) / density.density(process, t)
    assert (ratio <= weights.likelihood(process, t) * (1 - 1e-3) / 0.1 * (1 + 1e-9)).all()


def test_defensive_refuses_a_share_outside_the_unit_interval():
    with pytest.raises(ValueError, match=r"uniform_share=1\.0"):
        times.Defensive(uniform_share=1.0)


@pytest.mark.parametrize("stratum", [times.Stratum(), times.Stratum(2, 5)])
def test_stratified_numbers_fill_every_cell_once(stratum):
    u = np.asarray(times.stratified(jax.random.key(3), 64, stratum))
    inside = u * stratum.draws - stratum.draw
    assert sorted(np.floor(inside * 64).astype(int)) == list(range(64))


def test_stratified_numbers_are_each_uniform():
    u = jax.vmap(lambda key: times.stratified(key, 4))(jax.random.split(jax.random.key(4), 20_000))
    # Kolmogorov-Smirnov distance of the first number alone; 1.95 / sqrt(n) is its 0.1 % quantile.
    first = np.sort(np.asarray(u[:, 0]))
    distance = np.abs(first - (np.arange(len(first)) + 0.5) / len(first)).max()
    assert distance < 1.95 / np.sqrt(len(first))


@pytest.mark.parametrize(
    "process", [VP(), VP(beta_max=40.0), GeometricVP()], ids=["vp", "vp_40", "geometric"]
)
def test_float32_densities_and_quantiles_keep_their_digits(process, density):
    """Also near t = 1, where 2 f + g^2 / sigma^2 cancels and log sigma^2 rounds to 0."""
    u = np.concatenate([np.linspace(0, 1, 1001)[:-1], 1 - np.geomspace(1e-3, 1e-2, 50)]).astype(np.float32)
    t = np.linspace(1e-3, 1.0, 1000).astype(np.float32)
    single_t, single_r = density.quantile(process, jnp.asarray(u)), density.density(process, jnp.asarray(t))
    with jax.enable_x64(True):
        exact_t = np.asarray(density.quantile(process, jnp.asarray(u, jnp.float64)))
        exact_r = np.asarray(density.density(process, jnp.asarray(t, jnp.float64)))
    np.testing.assert_allclose(single_t, exact_t, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(single_r, exact_r, rtol=2e-5)
    last = density.quantile(process, jnp.asarray(1 - np.geomspace(6e-8, 1e-3, 100), jnp.float32))
    assert jnp.isfinite(last).all()
    assert (last <= 1 + 1e-5).all()
