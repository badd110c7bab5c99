"""Decoder likelihoods are distributions over grey levels: they sum to one, and samples follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.autoencoders.likelihoods import (
    Bernoulli,
    Categorical,
    Cropped,
    DiscretisedLogistic,
    GaussianPixels,
)

CASES = {
    "bernoulli": Bernoulli(),
    "logistic_17": DiscretisedLogistic(levels=17),
    "logistic_256": DiscretisedLogistic(levels=256),
    "categorical": Categorical(levels=17),
    "logistic_32": DiscretisedLogistic(levels=32),
    "cropped": Cropped(Categorical(levels=17), border=0),
}


@pytest.fixture(params=CASES)
def likelihood(request):
    return CASES[request.param]


def features_of(likelihood, key, pixels=1, spread=1.0):
    return spread * jax.random.normal(key, (pixels, 1, 1, likelihood.channels(1)))


def levels_of(likelihood):
    return levels_of(likelihood.inner) if isinstance(likelihood, Cropped) else likelihood.levels


def all_levels(likelihood):
    return jnp.linspace(-1.0, 1.0, levels_of(likelihood))[:, None, None, None]


@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_probabilities_sum_to_one(precision, likelihood, spread):
    for seed in range(5):
        features = features_of(likelihood, jax.random.key(seed), spread=spread)
        levels = all_levels(likelihood)
        log_p = likelihood.log_prob(jnp.repeat(features, len(levels), 0), levels)
        np.testing.assert_allclose(jnp.exp(log_p).sum(), 1.0, rtol=1e-12 if precision == "float64" else 3e-5)


def test_log_prob_adds_over_pixels_and_channels(x64):
    likelihood = DiscretisedLogistic(levels=17)
    features = jax.random.normal(jax.random.key(0), (1, 2, 2, likelihood.channels(3)))
    x = jnp.round(jax.random.uniform(jax.random.key(1), (1, 2, 2, 3)) * 16) / 8 - 1
    mean, log_scale = jnp.split(features, 2, axis=-1)
    parts = [
        likelihood.log_prob(
            jnp.stack([mean[0, i, j, c], log_scale[0, i, j, c]])[None, None, None],
            x[:, i : i + 1, j : j + 1, c : c + 1],
        )[0]
        for i in range(2)
        for j in range(2)
        for c in range(3)
    ]
    np.testing.assert_allclose(likelihood.log_prob(features, x)[0], sum(parts), rtol=1e-12)


def test_samples_follow_log_prob(likelihood):
    features = features_of(likelihood, jax.random.key(2))
    count = 40_000
    drawn = likelihood.sample(jnp.repeat(features, count, 0), jax.random.key(3))
    levels = all_levels(likelihood)
    expected = np.exp(likelihood.log_prob(jnp.repeat(features, len(levels), 0), levels))
    steps = levels_of(likelihood) - 1
    index = np.round((np.asarray(drawn).ravel() + 1) / 2 * steps).astype(int)
    np.testing.assert_allclose(2 * index / steps - 1, np.asarray(drawn).ravel(), atol=1e-6)
    observed = np.bincount(index, minlength=steps + 1) / count
    assert np.abs(np.cumsum(observed) - np.cumsum(expected)).max() < 1.95 / np.sqrt(count)


@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), Categorical(levels=17)], ids=["bernoulli", "categorical"]
)
def test_mean_is_the_expectation(x64, likelihood):
    features = features_of(likelihood, jax.random.key(4))
    levels = all_levels(likelihood)
    p = jnp.exp(likelihood.log_prob(jnp.repeat(features, len(levels), 0), levels))
    np.testing.assert_allclose(likelihood.mean(features).ravel(), (p * levels.ravel()).sum(), rtol=1e-10)


def test_logistic_far_from_its_mean_stays_finite_and_keeps_its_slope():
    """In float32, where the difference of two sigmoids is 0, log p still decreases by 1 / scale per unit of x."""
    likelihood = DiscretisedLogistic(levels=256)
    features = jnp.array([-0.9, -5.0])[None, None, None]
    x = jnp.array([0.2, 0.2 + 2 / 255])[:, None, None, None]
    log_p = likelihood.log_prob(jnp.repeat(features, 2, 0), x)
    np.testing.assert_allclose(log_p[1] - log_p[0], -np.exp(5.0) * 2 / 255, rtol=1e-3)


def test_bernoulli_refuses_grey_levels():
    with pytest.raises(ValueError, match="levels=17"):
        Bernoulli(levels=17)


@pytest.mark.parametrize("log_scale", [-3.0, -5.0, -7.0])
def test_density_below_changes_small_masses_by_a_known_factor(x64, log_scale):
    """In the tails the density is exponential: its mean over a bin is sinh(h) / h times that at the centre."""
    exact, published = (DiscretisedLogistic(levels=256, density_below=mass) for mass in (0.0, 1e-5))
    x = all_levels(exact)
    features = jnp.repeat(jnp.array([0.1, log_scale])[None, None, None], len(x), 0)
    log_p = exact.log_prob(features, x)
    loss = log_p - published.log_prob(features, x)
    inner, distance = np.abs(x.ravel()) < 1.0, np.abs(x.ravel() - 0.1) * np.exp(-log_scale)
    np.testing.assert_array_equal(loss[(log_p > np.log(1e-5)) | ~inner], 0.0)
    h = np.exp(-log_scale) / 255
    far = inner & (distance > 16.0) & (log_p < np.log(1e-5))
    assert far.any()
    np.testing.assert_allclose(loss[far], np.log(np.sinh(h) / h), rtol=1e-3)


@pytest.mark.parametrize("density_below", [0.0, 1e-5])
def test_gradients_stay_finite_where_masses_vanish(density_below):
    likelihood = DiscretisedLogistic(levels=256, density_below=density_below)
    features = jnp.array([-0.99, -7.0])[None, None, None]
    x = jnp.array([-1.0, -0.5, 1.0])[:, None, None, None]
    gradient = jax.grad(lambda f: likelihood.log_prob(jnp.repeat(f, 3, 0), x).sum())(features)
    assert np.isfinite(gradient).all()


def test_gaussian_pixels_have_a_normalised_density(precision):
    likelihood = GaussianPixels()
    features = jax.random.normal(jax.random.key(0), (1, 1, 1, 2)) * jnp.array([0.1, 1.0]) - jnp.array(
        [0.0, 2.0]
    )
    x = jnp.linspace(-6.0, 6.0, 200_001)[:, None, None, None]
    log_p = likelihood.log_prob(jnp.repeat(features, len(x), 0), x)
    np.testing.assert_allclose(np.trapezoid(np.exp(log_p), x.ravel()), 1.0, rtol=1e-5)
    centre = np.average(x.ravel(), weights=np.exp(log_p))
    np.testing.assert_allclose(likelihood.mean(features).ravel(), centre, atol=1e-5)


def test_gaussian_pixels_samples_follow_their_density(x64):
    """For narrow bins, the share of samples at each grey level is the density there times the bin width."""
    likelihood = GaussianPixels()
    features = jnp.array([0.1, -1.6])[None, None, None]
    count, x = 40_000, jnp.linspace(-1.0, 1.0, 256)[:, None, None, None]
    drawn = likelihood.sample(jnp.repeat(features, count, 0), jax.random.key(1)).ravel()
    index = np.round((np.asarray(drawn) + 1) / 2 * 255).astype(int)
    np.testing.assert_allclose(drawn, np.linspace(-1.0, 1.0, 256)[index], atol=1e-12)
    expected = np.exp(likelihood.log_prob(jnp.repeat(features, len(x), 0), x)) * 2 / 255
    observed = np.bincount(index, minlength=256) / count
    assert np.abs(np.cumsum(observed) - np.cumsum(expected)).max() < 1.95 / np.sqrt(count)


def test_a_cropped_likelihood_depends_only_on_the_inside(x64):
    inner, border = Bernoulli(), 2
    features = jax.random.normal(jax.random.key(0), (2, 7, 8, 1))
    x = jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, features.shape), 1.0, -1.0)
    gradient = jax.grad(lambda f: Cropped(inner, border).log_prob(f, x).sum())(features)
    rows, columns = np.nonzero(np.asarray(gradient).any(axis=(0, 3)))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 4, 2, 5)
    full = jax.grad(lambda f: inner.log_prob(f, x).sum())(features)
    np.testing.assert_array_equal(gradient[:, 2:5, 2:6], full[:, 2:5, 2:6])


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: Cropped(Bernoulli(), border=-1), "border=-1: give"),
        (
            lambda: Cropped(Bernoulli(), 4).log_prob(jnp.zeros((1, 8, 8, 1)), jnp.ones((1, 8, 8, 1))),
            "border=4 leaves",
        ),
        (lambda: DiscretisedLogistic(density_below=1.0), "density_below=1.0"),
    ],
)
def test_invalid_settings_are_named(use, message):
    with pytest.raises(ValueError, match=message):
        use()
