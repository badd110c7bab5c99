"""Decoder likelihoods are probabilities of grey levels: they sum to one, and samples follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.autoencoders.likelihoods import Bernoulli, Categorical, DiscretisedLogistic

CASES = {
    "bernoulli": Bernoulli(),
    "logistic_17": DiscretisedLogistic(levels=17),
    "logistic_256": DiscretisedLogistic(levels=256),
    "categorical": Categorical(levels=17),
}


@pytest.fixture(params=CASES)
def likelihood(request):
    return CASES[request.param]


def features_of(likelihood, key, pixels=1, spread=1.0):
    return spread * jax.random.normal(key, (pixels, 1, 1, likelihood.channels(1)))


def all_levels(likelihood):
    return jnp.linspace(-1.0, 1.0, likelihood.levels)[:, None, None, None]


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
    index = np.round((np.asarray(drawn).ravel() + 1) / 2 * (likelihood.levels - 1)).astype(int)
    np.testing.assert_allclose(2 * index / (likelihood.levels - 1) - 1, np.asarray(drawn).ravel(), atol=1e-6)
    observed = np.bincount(index, minlength=likelihood.levels) / count
    assert np.abs(np.cumsum(observed) - np.cumsum(expected)).max() < 1.95 / np.sqrt(count)


@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), Categorical(levels=17)], ids=["bernoulli", "categorical"]
)
def test_mean_is_the_expectation(x64, likelihood):
    features = features_of(likelihood, jax.random.key(4))
    levels = all_levels(likelihood)
    p = jnp.exp(likelihood.log_prob(jnp.repeat(features, len(levels), 0), levels))
    np.testing.assert_allclose(likelihood.mean(features).squeeze(), (p * levels.squeeze()).sum(), rtol=1e-10)


def test_logistic_far_from_its_mean_stays_finite_and_keeps_its_slope():
    """In float32, where the difference of two sigmoids is 0, log p still falls by 1 / scale per unit of x."""
    likelihood = DiscretisedLogistic(levels=256)
    features = jnp.array([-0.9, -5.0])[None, None, None]
    x = jnp.array([0.2, 0.2 + 2 / 255])[:, None, None, None]
    log_p = likelihood.log_prob(jnp.repeat(features, 2, 0), x)
    np.testing.assert_allclose(log_p[1] - log_p[0], -np.exp(5.0) * 2 / 255, rtol=1e-3)


def test_bernoulli_refuses_grey_levels():
    with pytest.raises(ValueError, match="levels=17"):
        Bernoulli(levels=17)
