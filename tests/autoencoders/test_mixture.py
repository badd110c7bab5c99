"""The mixture of logistics is a distribution over colours: it sums to one, and samples follow it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.autoencoders.likelihoods import DiscretisedLogistic
from lsgm_jax.autoencoders.mixture import MixtureOfLogistics


def features_of(likelihood, seed, count=1, spread=1.5):
    return spread * jax.random.normal(jax.random.key(seed), (count, 1, 1, likelihood.channels(3)))


def colours_of(*grids):
    return jnp.stack(jnp.meshgrid(*grids, indexing="ij"), -1).reshape(-1, 1, 1, 3)


def all_colours(levels):
    return colours_of(*[jnp.linspace(-1.0, 1.0, levels)] * 3)


def probabilities(likelihood, features, colours):
    return np.exp(likelihood.log_prob(jnp.repeat(features, len(colours), 0), colours))


@pytest.mark.parametrize(("levels", "mixtures"), [(2, 10), (5, 3), (32, 10)])
def test_probabilities_of_all_colours_sum_to_one(precision, levels, mixtures):
    likelihood = MixtureOfLogistics(levels=levels, mixtures=mixtures)
    for seed in range(3):
        p = probabilities(likelihood, features_of(likelihood, seed), all_colours(levels))
        np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-12 if precision == "float64" else 3e-5)


def test_the_marginal_of_red_at_8_bits_is_a_mixture_of_logistics(x64):
    """Summed over green and blue, the mixture is that of the discretised logistics of red."""
    likelihood, single = MixtureOfLogistics(levels=256, mixtures=4), DiscretisedLogistic(levels=256)
    features = features_of(likelihood, 0)
    level = jnp.linspace(-1.0, 1.0, 256)
    weights = jax.nn.softmax(features[0, 0, 0, :4])
    mean_and_scale = jnp.stack([features[0, 0, 0, 4:8], features[0, 0, 0, 8:12]], -1)[:, None, None]
    for red in (level[0], level[100], level[255]):
        p = probabilities(likelihood, features, colours_of(red[None], level, level))
        mass = jnp.exp(single.log_prob(mean_and_scale, jnp.full((4, 1, 1, 1), red)))
        np.testing.assert_allclose(p.sum(), weights @ mass, rtol=1e-10)


@pytest.mark.parametrize("levels", [2, 4])
def test_samples_follow_log_prob(levels):
    likelihood = MixtureOfLogistics(levels=levels, mixtures=3)
    features, count = features_of(likelihood, 1), 100_000
    drawn = likelihood.sample(jnp.repeat(features, count, 0), jax.random.key(2)).reshape(count, 3)
    steps = np.round((np.asarray(drawn) + 1) / 2 * (levels - 1)).astype(int)
    np.testing.assert_allclose(2 * steps / (levels - 1) - 1, drawn, atol=1e-6)
    observed = np.bincount(np.ravel_multi_index(steps.T, (levels,) * 3), minlength=levels**3) / count
    expected = probabilities(likelihood, features, all_colours(levels))
    assert (np.abs(observed - expected) < 4.5 * np.sqrt(expected / count) + 1.0 / count).all()


def test_means_and_samples_stay_in_the_image_range(precision):
    likelihood = MixtureOfLogistics()
    features = features_of(likelihood, 3, count=500, spread=5.0)
    for images in (likelihood.mean(features), likelihood.sample(features, jax.random.key(4))):
        assert np.abs(images).max() == 1.0
        assert (np.abs(images) < 1.0).any()


def test_the_mean_of_one_narrow_component_is_the_expectation(x64):
    """If the component does not reach the ends of the range, the coupled means are exact up to the bin width."""
    likelihood = MixtureOfLogistics(levels=64, mixtures=1)
    features = 0.3 * features_of(likelihood, 5)
    features = features.at[..., 2::3].set(-4.0)  # log scales
    features = features.at[..., 0].set(0.0)
    colours = all_colours(64)
    expected = probabilities(likelihood, features, colours) @ colours.reshape(-1, 3)
    np.testing.assert_allclose(likelihood.mean(features).ravel(), expected, atol=2e-3)


def test_median_uniforms_draw_the_median(x64):
    """It is the mean of the only component, as a logistic is symmetric."""
    likelihood = MixtureOfLogistics(mixtures=1)
    features = features_of(likelihood, 6, count=50)
    half = jnp.full((50, 1, 1, 3), 0.5)
    np.testing.assert_allclose(
        likelihood.draw(features, half[..., :1], half), likelihood.mean(features), rtol=1e-12
    )


def test_one_channel_is_refused():
    with pytest.raises(ValueError, match="cannot describe 1-channel images: use discretised_logistic"):
        MixtureOfLogistics().channels(1)
    with pytest.raises(ValueError, match="mixtures=0: give"):
        MixtureOfLogistics(mixtures=0)
