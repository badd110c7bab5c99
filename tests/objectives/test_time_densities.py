"""Time densities: they integrate to one, samples follow them, and all densities give the same weighted integral."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.objectives import proposals, time_densities, weightings
from lsgm_jax.processes import linear
from lsgm_jax.processes.vp import VP, GeometricVP
from tests.process_examples import MAIN, PROCESSES

T_MIN = 1e-3


def squared_growth(process, t):
    """A custom weighting."""
    return 0.1 + t**2


WEIGHTINGS = {
    "likelihood": weightings.likelihood,
    "reweighted": weightings.reweighted,
    "unweighted": weightings.unweighted,
    "rescaled": weightings.rescaled,
    "x_0": weightings.x_0,
    "custom": squared_growth,
}
DENSITIES = {
    "uniform": time_densities.Uniform(t_min=T_MIN),
    "defensive": time_densities.Defensive(t_min=T_MIN),
    **{f"optimal_{name}": time_densities.Optimal(weighting=w, t_min=T_MIN) for name, w in WEIGHTINGS.items()},
}
ALL_PAIRS = list(itertools.product(MAIN, DENSITIES))
CLOSED = [
    (process, weighting)
    for process, weighting in itertools.product(PROCESSES, WEIGHTINGS)
    if proposals.closed_form(WEIGHTINGS[weighting], PROCESSES[process], T_MIN) is not None
]


def grid(t_min=T_MIN, count=200_001):
    """Nodes, dense where the densities are steep."""
    return jnp.exp(jnp.linspace(jnp.log(t_min), 0.0, count))


def test_the_papers_closed_forms_are_used():
    """Uniform log variance, uniform variance, and the erf form; all other pairs have a table."""
    closed = {(process, weighting) for process, weighting in CLOSED if process in MAIN}
    assert closed == {
        *((process, "rescaled") for process in MAIN),
        *(("vp", w) for w in ("likelihood", "reweighted", "unweighted")),
        *(("geometric", w) for w in ("likelihood", "reweighted")),
        *(("ve", w) for w in ("likelihood", "reweighted", "unweighted")),
    }


@pytest.mark.parametrize(("process", "density"), ALL_PAIRS)
def test_density_integrates_to_one(x64, process, density):
    t = grid()
    np.testing.assert_allclose(jnp.trapezoid(DENSITIES[density].density(MAIN[process], t), t), 1.0, rtol=1e-5)


@pytest.mark.parametrize(("process", "density"), ALL_PAIRS)
def test_samples_follow_the_density(x64, process, density):
    """The fraction of a dense regular grid of u that maps into an interval is the integral of the density over it."""
    process, density = MAIN[process], DENSITIES[density]
    drawn = density.quantile(process, (jnp.arange(400_000) + 0.5) / 400_000)
    t = grid()
    r = density.density(process, t)
    cumulative = jnp.concatenate([jnp.zeros(1), jnp.cumsum(jnp.diff(t) * (r[1:] + r[:-1]) / 2)])
    for bound in (2e-3, 0.01, 0.1, 0.5, 0.9):
        np.testing.assert_allclose((drawn <= bound).mean(), jnp.interp(bound, t, cumulative), atol=2e-5)
    assert drawn.min() >= T_MIN - 1e-12
    assert drawn.max() <= 1.0 + 1e-12


@pytest.mark.parametrize(("process", "weighting"), CLOSED)
def test_quantile_slope_is_the_inverse_density(x64, process, weighting):
    process = PROCESSES[process]
    proposal = proposals.closed_form(WEIGHTINGS[weighting], process, T_MIN)
    u = jnp.linspace(0.001, 0.999, 50)
    t, slope = jax.jvp(proposal.quantile, (u,), (jnp.ones_like(u),))
    np.testing.assert_allclose(slope * proposal.density(t), 1.0, rtol=1e-7)


@pytest.mark.parametrize(("process", "weighting"), CLOSED)
def test_closed_form_is_the_optimal_density(x64, process, weighting):
    """It is proportional to lambda e: the ratio of the weighted error to the density is constant."""
    process, t = PROCESSES[process], jnp.linspace(T_MIN, 1.0, 100)
    proposal = proposals.closed_form(WEIGHTINGS[weighting], process, T_MIN)
    ratio = WEIGHTINGS[weighting](process, t) * linear.gaussian_error(process, t) / proposal.density(t)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-8)


@pytest.mark.parametrize(("process", "weighting"), CLOSED)
def test_table_agrees_with_the_closed_form(x64, process, weighting):
    process, u, t = PROCESSES[process], jnp.linspace(0.001, 0.999, 50), jnp.linspace(T_MIN, 0.999, 50)
    exact = proposals.closed_form(WEIGHTINGS[weighting], process, T_MIN)
    table = proposals.Table(WEIGHTINGS[weighting], process, T_MIN)
    np.testing.assert_allclose(table.quantile(u), exact.quantile(u), rtol=5e-4)
    np.testing.assert_allclose(table.density(t), exact.density(t), rtol=5e-4)


@functools.lru_cache(maxsize=1)
def integrands(name):
    """Times from each density, the error over the density there, and the error on the grid, for any weighting.

    The error is similar to a denoising error, but not the Gaussian one.
    """
    process, u = MAIN[name], jax.random.uniform(jax.random.key(0), (200_000,))
    error = lambda t: linear.gaussian_error(process, t) * (1.0 + 0.5 * jnp.sin(5.0 * t))
    draws = {key: density.quantile(process, u) for key, density in DENSITIES.items()}
    ratios = {key: error(t) / DENSITIES[key].density(process, t) for key, t in draws.items()}
    return draws, ratios, error(grid())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("process", MAIN)
def test_every_density_estimates_the_same_integral(x64, process, weighting):
    """E[lambda / r * f] is the integral of lambda f, within four standard errors, for an f that is optimal for none."""
    draws, ratios, error = integrands(process)
    process, weight, t = MAIN[process], WEIGHTINGS[weighting], grid()
    exact = jnp.trapezoid(weight(process, t) * error, t)
    for name in DENSITIES:
        values = weight(process, draws[name]) * ratios[name]
        assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(len(values)) + 1e-6 * exact, name


@functools.lru_cache(maxsize=1)
def densities_on(name, count):
    """Every density on the grid."""
    return {key: density.density(MAIN[name], grid(count=count)) for key, density in DENSITIES.items()}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("process", MAIN)
def test_optimal_density_has_the_least_variance(x64, process, weighting):
    """For Gaussian data and the exact score, by quadrature over time.

    The squared error of one dimension is e times a chi-square variable, so its second moment is proportional to e^2.
    """
    densities, t = densities_on(process, count=20_001), grid(count=20_001)
    process, weight = MAIN[process], WEIGHTINGS[weighting]
    error = linear.gaussian_error(process, t)
    moments = {
        name: float(jnp.trapezoid((weight(process, t) * error) ** 2 / r, t)) for name, r in densities.items()
    }
    least = moments[f"optimal_{weighting}"]
    assert all(least <= moment * (1 + 1e-6) for moment in moments.values()), moments
    mean = float(jnp.trapezoid(weight(process, t) * error, t))
    np.testing.assert_allclose(least, mean**2, rtol=1e-4)  # the lower limit of Cauchy and Schwarz (O5)


def test_defensive_bounds_the_ratio(x64):
    for process in MAIN.values():
        t = jnp.linspace(T_MIN, 1.0, 1000)
        ratio = weightings.likelihood(process, t) / DENSITIES["defensive"].density(process, t)
        assert (ratio <= weightings.likelihood(process, t) * (1 - T_MIN) / 0.1 * (1 + 1e-9)).all()


def test_defensive_refuses_a_share_outside_the_unit_interval():
    with pytest.raises(ValueError, match=r"uniform_share=1\.0"):
        time_densities.Defensive(uniform_share=1.0)


@pytest.mark.parametrize(
    "spread", [time_densities.stratified, time_densities.equidistant, time_densities.independent]
)
def test_timesteps_are_the_nodes_equally_often(precision, spread):
    """Also where u rounds to 1; no time is between nodes, because noise prediction is trained at nodes alone."""
    density, process = time_densities.Timesteps(steps=1000), MAIN["vp"]
    u = jnp.concatenate([(jnp.arange(4000) + 0.5) / 4000, jnp.asarray([0.0, 1.0 - 6e-8, 1.0])])
    steps = np.asarray(density.quantile(process, u)) * 1000
    assert sorted(np.unique(np.round(steps[:4000]), return_counts=True)[1]) == [4] * 1000
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    np.testing.assert_allclose(steps[4000:], [1.0, 1000.0, 1000.0], rtol=1e-6)
    drawn = time_densities.sample_times(density, process, jax.random.key(0), 1000, spread=spread) * 1000
    if spread is not time_densities.independent:
        np.testing.assert_allclose(np.sort(np.asarray(drawn)), np.arange(1, 1001), rtol=1e-5)
    assert drawn.min() >= 1000 * density.t_min * (1 - 1e-6)


def test_losses_over_timesteps_are_means_over_the_nodes(x64):
    """They are sums of mass 1 / steps, and converge to the integral over time for many steps."""
    process, weight = MAIN["vp"], weightings.reweighted
    for steps in (10, 1000):
        density, nodes = time_densities.Timesteps(steps=steps), jnp.arange(1, steps + 1) / steps
        t = density.quantile(process, (jnp.arange(20 * steps) + 0.5) / (20 * steps))
        mean = (weight(process, t) / density.density(process, t)).mean()
        np.testing.assert_allclose(mean, weight(process, nodes).mean(), rtol=1e-12)
    integral = jnp.trapezoid(weight(process, grid(1e-6)), grid(1e-6))
    np.testing.assert_allclose(mean, integral, rtol=2e-3)


def test_timesteps_are_at_least_two():
    with pytest.raises(ValueError, match="steps=1: give at least two"):
        time_densities.Timesteps(steps=1)


def test_constant_beta_has_no_error_function(x64):
    """Its 1 - sigma^2 is an exponential; the table replaces the closed form, which divides by beta_max - beta_min."""
    process = VP(beta_min=3.0, beta_max=3.0)
    density = time_densities.Optimal(weighting=weightings.unweighted, t_min=0.01)
    t = jnp.linspace(0.01, 1.0, 9)
    exact = jnp.exp(-3.0 * t) * 3.0 / (np.exp(-0.03) - np.exp(-3.0))
    np.testing.assert_allclose(density.density(process, t), exact, rtol=1e-4)


def test_processes_may_be_traced():
    """For a learned schedule, times are drawn inside the training step."""
    density = time_densities.Optimal(weighting=weightings.likelihood)
    draw = jax.jit(lambda process, u: density.quantile(process, u))
    u = jnp.linspace(0.0, 0.99, 5)
    for process in (MAIN["vp"], MAIN["cld"]):
        np.testing.assert_allclose(draw(process, u), density.quantile(process, u), rtol=1e-5)


@pytest.mark.parametrize("spread", [time_densities.stratified, time_densities.equidistant])
@pytest.mark.parametrize("stratum", [time_densities.Stratum(), time_densities.Stratum(2, 5)])
def test_spread_numbers_fill_every_cell_once(spread, stratum):
    u = np.asarray(spread(jax.random.key(3), 64, stratum))
    inside = u * stratum.draws - stratum.draw
    assert sorted(np.floor(inside * 64 + 1e-4).astype(int)) == list(range(64))


@pytest.mark.parametrize(
    "spread", [time_densities.independent, time_densities.stratified, time_densities.equidistant]
)
def test_spread_numbers_are_each_uniform(spread):
    u = jax.vmap(lambda key: spread(key, 4, time_densities.Stratum()))(
        jax.random.split(jax.random.key(4), 20_000)
    )
    # Kolmogorov-Smirnov distance of the first number alone; 1.95 / sqrt(n) is its 0.1 % quantile.
    first = np.sort(np.asarray(u[:, 0]))
    distance = np.abs(first - (np.arange(len(first)) + 0.5) / len(first)).max()
    assert distance < 1.95 / np.sqrt(len(first))


def test_spreading_reduces_the_variance_of_the_mean(x64):
    """For a smooth function of u, compared to independent numbers."""
    keys = jax.random.split(jax.random.key(5), 2000)

    def spread_of_mean(spread):
        u = jax.vmap(lambda key: spread(key, 32, time_densities.Stratum()))(keys)
        return jnp.mean(jnp.exp(u), axis=1).std()

    spreads = time_densities.independent, time_densities.stratified, time_densities.equidistant
    noise = {spread.__name__: spread_of_mean(spread) for spread in spreads}
    assert noise["stratified"] < 0.1 * noise["independent"]
    assert noise["equidistant"] < 0.2 * noise["independent"]


@pytest.mark.parametrize(
    "process",
    [*MAIN.values(), VP(beta_max=40.0), GeometricVP(sigma2_0=1e-4, sigma2_max=0.99)],
    ids=[*MAIN, "vp_40", "geometric_start"],
)
@pytest.mark.parametrize("density", DENSITIES)
def test_densities_and_quantiles_are_accurate_in_float32(process, density):
    """Also near t = 1, where 2 f + g^2 / sigma^2 cancels and log sigma^2 rounds to 0."""
    density = DENSITIES[density]
    u = np.concatenate([np.linspace(0, 1, 1001)[:-1], 1 - np.geomspace(1e-3, 1e-2, 50)]).astype(np.float32)
    t = np.linspace(T_MIN, 1.0, 1000).astype(np.float32)
    single_t, single_r = density.quantile(process, jnp.asarray(u)), density.density(process, jnp.asarray(t))
    with jax.enable_x64(True):
        exact_t = np.asarray(density.quantile(process, jnp.asarray(u, jnp.float64)))
        exact_r = np.asarray(density.density(process, jnp.asarray(t, jnp.float64)))
    np.testing.assert_allclose(single_r, exact_r, rtol=2e-5)
    # The accuracy of a time is limited by that of u, 6e-8.
    np.testing.assert_allclose(single_t, exact_t, rtol=2e-5, atol=2e-6 + 2e-7 / exact_r.min())
    last = density.quantile(process, jnp.asarray(1 - np.geomspace(6e-8, 1e-3, 100), jnp.float32))
    assert jnp.isfinite(last).all()
    assert (last <= 1 + 1e-5).all()


def test_weightings_of_the_two_papers_agree():
    """CLD's likelihood weight is Gamma beta / L_vv^2, its reweighted v1 Gamma beta, its v2 one (CLD section 3.1)."""
    process, t = PROCESSES["cld_linear_beta"], jnp.asarray([0.01, 0.4, 1.0])
    gamma_beta = process.damping() * process.beta(t)
    np.testing.assert_allclose(weightings.reweighted(process, t), gamma_beta, rtol=1e-6)
    np.testing.assert_allclose(
        weightings.likelihood(process, t), gamma_beta / linear.sigma(process, t) ** 2, rtol=1e-6
    )


def test_rescaled_is_the_weighting_of_the_paper(x64):
    """1 / (2 (1 - sigma^2)) for a variance-preserving process."""
    t = jnp.linspace(0.01, 0.9, 20)
    for process in (VP(), VP(sigma2_0=0.01), dataclasses.replace(GeometricVP(), sigma2_0=1e-3)):
        exact = 0.5 / (1.0 - linear.sigma(process, t) ** 2)
        np.testing.assert_allclose(weightings.rescaled(process, t), exact, rtol=1e-10)
