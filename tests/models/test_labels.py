"""Data that are no quantities: maps of labels, of which no two are nearer to each other than any others."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgm_jax.autoencoders.likelihoods import Categorical, shown
from lsgm_jax.evaluation import plots
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.kl import KLWeight
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import EMA, make_step
from tests import tiny

LABELS, MAPS = 300, 8


def as_values(index, levels=LABELS):
    return jnp.asarray(2.0 * index / (levels - 1) - 1.0, jnp.float32)


@pytest.fixture(scope="module")
def label_maps():
    """Eight maps of 300 labels, one of which is a sample: an entropy of log 8, and of 365 nats without a model."""
    return np.random.default_rng(0).integers(0, LABELS, (MAPS, 8, 8, 1))


def test_renaming_the_labels_changes_no_probability(label_maps):
    """The likelihood, the mode and what the encoder sees follow the permutation; no order is used."""
    likelihood = Categorical(levels=LABELS, ordered=False)
    features = jax.random.normal(jax.random.key(0), (MAPS, 8, 8, LABELS))
    name = np.random.default_rng(1).permutation(LABELS)
    renamed_features = features[..., np.argsort(name)]
    x, renamed = as_values(label_maps), as_values(name[label_maps])
    log_prob = likelihood.log_prob(features, x)
    np.testing.assert_allclose(likelihood.log_prob(renamed_features, renamed), log_prob, rtol=1e-5)
    mode = likelihood.index(likelihood.mean(features))
    np.testing.assert_array_equal(likelihood.index(likelihood.mean(renamed_features)), name[mode])
    np.testing.assert_array_equal(mode, jnp.argmax(features, axis=-1, keepdims=True))
    np.testing.assert_array_equal(shown(likelihood, renamed)[..., name], shown(likelihood, x))


def test_an_encoder_sees_grey_levels_as_they_are(label_maps):
    x = as_values(label_maps)
    np.testing.assert_array_equal(shown(Categorical(levels=LABELS), x), x)
    one_hot = shown(Categorical(levels=LABELS, ordered=False), x)
    np.testing.assert_array_equal(one_hot.sum(-1), 1.0)
    np.testing.assert_array_equal(one_hot.argmax(-1), label_maps[..., 0])


@pytest.mark.slow
def test_an_lsgm_learns_label_maps_and_its_bound_stays_above_the_entropy(label_maps):
    model = tiny.model(
        "--config.data.kind=classes",
        f"--config.data.levels={LABELS}",
        "--config.likelihood.ordered=False",
        "--config.autoencoder.dropout=0.0",
        "--config.score.dropout=0.0",
        "--config.density.t_min=1e-4",
    )
    optimiser = optax.adam(3e-3)
    full = lambda params, batch, context: model.loss(params, batch, context.key, KLWeight(1.0))
    step = jax.jit(make_step(full, optimiser, EMA(0.9)), donate_argnums=0)
    state = create_state(jax.jit(model.init)(jax.random.key(0)), optimiser)
    batch = Batch(as_values(np.repeat(label_maps, 4, axis=0)))
    for _ in range(250):
        state, _ = step(state, batch, jax.random.key(1))
    keys = jax.random.split(jax.random.key(2), 16)
    nelbo = np.mean([jax.jit(model.bound)(state.params, batch, key).nelbo for key in keys])
    assert math.log(MAPS) < nelbo < 40.0 < 64 * math.log(LABELS)


def test_labels_have_colours_of_their_own():
    """Ten labels are ten colours, and a map of grey levels stays grey."""
    x = np.asarray(as_values(np.arange(10).reshape(1, 2, 5, 1), levels=10))
    colours = plots.to_pixels(x, labels=10)
    assert colours.shape == (1, 2, 5, 3)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 10
    grey = plots.to_pixels(x)
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
