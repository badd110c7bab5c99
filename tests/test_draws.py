"""Noise that is drawn as a matrix is the same noise as with the axes of the maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lsgm_jax.arrays import draw_array
from lsgm_jax.autoencoders.likelihoods import Bernoulli, Categorical
from lsgm_jax.nn.layers import dropout

KEY = jax.random.key(3)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("sampler", [jax.random.normal, jax.random.uniform, jax.random.rademacher])
def test_the_numbers_are_those_of_the_sampler(precision, sampler, shape):
    ours = draw_array(sampler, KEY, shape, jnp.dtype(precision))
    np.testing.assert_array_equal(ours, sampler(KEY, shape, jnp.dtype(precision)), strict=True)


def test_dropout_drops_what_that_of_flax_drops():
    class Ours(nn.Module):
        @nn.compact
        def __call__(self, h):
            return dropout(h, 0.4, deterministic=False)

    class Theirs(nn.Module):
        @nn.compact
        def __call__(self, h):
            return nn.Dropout(0.4, deterministic=False)(h)

    h = jnp.ones((2, 3, 4, 5))
    ours, theirs = (module.apply({}, h, rngs={"dropout": KEY}) for module in (Ours(), Theirs()))
    assert 0 < int(jnp.sum(ours == 0)) < h.size
    np.testing.assert_array_equal(ours, theirs)


def test_pixels_are_those_of_bernoulli():
    features = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    expected = jax.random.bernoulli(KEY, jax.nn.sigmoid(features))
    np.testing.assert_array_equal(Bernoulli().sample(features, KEY) > 0, expected)


def test_grey_levels_are_those_of_categorical():
    features = 3.0 * jax.random.normal(jax.random.key(0), (2, 4, 4, 5))
    expected = jax.random.categorical(KEY, features)
    drawn = Categorical(levels=5, ordered=False).sample(features, KEY)[..., 0]
    np.testing.assert_allclose(drawn, jnp.linspace(-1.0, 1.0, 5)[expected])
