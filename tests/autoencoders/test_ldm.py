"""First stages of latent diffusion, where recorded numbers do not reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.stats import entropy

from lsgm_jax.autoencoders.discriminator import PatchDiscriminator
from lsgm_jax.autoencoders.gaussian import Gaussian
from lsgm_jax.autoencoders.ldm import EPSILON, Decoder, Encoder, Levels, unit_scale
from lsgm_jax.autoencoders.perceptual import LPIPS
from lsgm_jax.autoencoders.quantiser import Quantiser, usage
from lsgm_jax.evaluation.model_size import count_parameters
from lsgm_jax.interop.ldm_autoencoder import AutoencoderParts, first_stage_shapes
from lsgm_jax.nn.layers import ldm_group_norm
from lsgm_jax.nn.network import Compute, Network
from lsgm_jax.objectives.gan import GANLoss


def kl_model(embed, *widening, attention=()):
    levels = Levels(channel_mult=widening, attention=attention)
    return AutoencoderParts(Encoder(levels, 2 * embed, 2 * embed), Decoder(levels, embed))


def vq_model(entries, embed, *widening, attention=()):
    levels = Levels(channel_mult=widening, attention=attention)
    return AutoencoderParts(
        Encoder(levels, embed, embed), Decoder(levels, embed), Quantiser(entries=entries, width=embed)
    )


# The published first stages and their millions of parameters, codebook included.
PUBLISHED = {
    "kl-f4": (kl_model(3, 1, 2, 4), 55.3),
    "kl-f8": (kl_model(4, 1, 2, 4, 4), 83.7),
    "kl-f16": (kl_model(16, 1, 1, 2, 2, 4, attention=(16,)), 69.6),
    "kl-f32": (kl_model(64, 1, 1, 2, 2, 4, 4, attention=(16, 8)), 103.9),
    "vq-f4": (vq_model(8192, 3, 1, 2, 4), 55.3),
    "vq-f4-noattn": (vq_model(8192, 3, 1, 2, 4, attention=None), 53.2),
    "vq-f8": (vq_model(16384, 4, 1, 2, 2, 4, attention=(32,)), 67.7),
    "vq-f8-n256": (vq_model(256, 4, 1, 2, 2, 4, attention=(32,)), 67.7),
    "vq-f16": (vq_model(16384, 8, 1, 1, 2, 2, 4, attention=(16,)), 69.6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_first_stages_have_the_published_size(name):
    parts, millions = PUBLISHED[name]
    assert round(count_parameters(first_stage_shapes(parts)) / 1e6, 1) == millions


def test_the_published_discriminator_sees_70_pixels():
    """A change of one pixel reaches exactly the logits whose square of 70 x 70 contains it."""
    module = PatchDiscriminator(channels=2)
    x = jnp.zeros((1, 96, 96, 3))
    variables = module.init(jax.random.key(0), x, train=False)
    logit = jax.jit(lambda x: module.apply(variables, x, train=False)[0, 5, 5, 0])
    seen = jnp.any(jax.grad(logit)(x + 1.0)[0] != 0.0, axis=-1)
    assert (seen.any(axis=0).sum(), seen.any(axis=1).sum()) == (70, 70)


@pytest.mark.parametrize("attention", [(4,), None])
def test_maps_between_layers_are_bfloat16_where_they_are_asked_for(attention):
    """And what comes out is close to what float32 gives."""
    levels = Levels(channels=32, channel_mult=(1, 2), blocks=1, attention=attention, resolution=8)
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 3))
    for module in (Encoder(levels, 4, 4), Decoder(levels, 4)):
        inputs = x if isinstance(module, Encoder) else jax.random.normal(jax.random.key(1), (1, 4, 4, 4))
        plain, lowered = Network(module), Network(module, Compute(dtype="bfloat16", remat=True))
        params = plain.init(jax.random.key(2), inputs)
        direct = module.apply({"params": params}, inputs.astype(jnp.bfloat16), deterministic=True)
        assert direct.dtype == jnp.bfloat16
        exact, rough = (
            plain.apply(params, inputs),
            lowered.apply(params, inputs, dropout_key=jax.random.key(3)),
        )
        np.testing.assert_allclose(rough, exact, atol=0.05 * float(jnp.abs(exact).max()))


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, h):
        return ldm_group_norm(h, "norm", EPSILON)


def test_flat_maps_are_normalised_as_published():
    """Where epsilon shows: (h - m) / sqrt(v + 1e-6), with a variance of 4e-6 beside a mean of one."""
    h = 1.0 + 2e-3 * np.random.default_rng(0).standard_normal((2, 8, 8, 32)).astype(np.float32)
    normalised, _ = Normalised().init_with_output(jax.random.key(0), jnp.asarray(h))
    exact = h.astype(np.float64)
    centred = exact - exact.mean(axis=(1, 2), keepdims=True)
    expected = centred / np.sqrt(exact.var(axis=(1, 2), keepdims=True) + 1e-6)
    np.testing.assert_allclose(normalised, expected, atol=2e-4)


def test_widths_that_cannot_be_normalised_are_refused():
    with pytest.raises(ValueError, match="a width of 48 is not divisible into 32 groups"):
        Levels(channels=48, channel_mult=(1, 2))


def test_numbers_that_make_no_codebook_are_refused():
    with pytest.raises(ValueError, match="entries=0"):
        Quantiser(entries=0, width=3)
    with pytest.raises(ValueError, match="beta=-1"):
        Quantiser(entries=4, width=3, beta=-1.0)


def test_numbers_that_make_no_game_are_refused():
    with pytest.raises(ValueError, match="loss='wasserstein' is none of hinge, softplus"):
        GANLoss(loss="wasserstein")
    with pytest.raises(ValueError, match="start=-1"):
        GANLoss(start=-1)


def test_quantising_finds_the_nearest_entry_of_a_fresh_codebook():
    """Against a search through all distances; what is rounded already stays, and costs nothing."""
    quantiser = Quantiser(entries=8, width=3)
    codebook = quantiser.init(jax.random.key(0))
    assert float(jnp.abs(codebook).max()) <= 1 / 8
    z = jax.random.normal(jax.random.key(1), (2, 3, 5, 3)) / 8
    rounded = quantiser(codebook, z)
    distances = np.linalg.norm(np.asarray(z)[..., None, :] - np.asarray(codebook), axis=-1)
    np.testing.assert_array_equal(rounded.indices, distances.argmin(axis=-1))
    np.testing.assert_array_equal(rounded.values, codebook[rounded.indices])
    again = quantiser(codebook, rounded.values)
    assert float(again.loss) == 0.0
    np.testing.assert_array_equal(again.values, rounded.values)


def test_usage_is_that_of_the_counts():
    found = usage(jnp.asarray([[0, 0, 2], [2, 3, 3]]), 5)
    np.testing.assert_allclose(found.perplexity, np.exp(entropy([2, 2, 2])), rtol=1e-6)
    assert int(found.used) == 3


def test_divergence_from_standard_is_cross_entropy_less_entropy(x64):
    features = jax.random.normal(jax.random.key(0), (3, 4, 4, 6))
    posterior = Gaussian.from_log_variance(features)
    expected = posterior.cross_entropy_to_standard() - posterior.entropy()
    np.testing.assert_allclose(posterior.divergence_from_standard(), expected, atol=1e-14)


def test_scaled_latents_have_unit_deviation():
    z = 3.0 * jax.random.normal(jax.random.key(0), (2, 4, 4, 3)) + 1.0
    np.testing.assert_allclose(np.std(np.asarray(unit_scale(z) * z), ddof=1), 1.0, rtol=1e-6)


def test_the_perceptual_distance_is_zero_and_flat_between_equal_images():
    """Also where no feature is left to be normalised: the gradient is finite."""
    module = LPIPS(widths=(4, 4), convolutions=(1, 1))
    x = jnp.zeros((2, 4, 4, 3))
    variables = module.init(jax.random.key(0), x, x)
    dead = jax.tree.map(jnp.zeros_like, variables["params"])
    for params in (variables["params"], dead):
        distance = lambda a, params=params: module.apply({**variables, "params": params}, a, x).sum()
        value, gradient = jax.value_and_grad(distance)(x)
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradient, 0.0)
