"""First stages of latent diffusion, besides the tests against recorded outputs of the original."""

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


# The published first stages and their millions of parameters, with the codebook.
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


def test_the_receptive_field_of_the_published_discriminator_is_70_pixels():
    """A logit depends on exactly the pixels of a square of 70 x 70."""
    module = PatchDiscriminator(channels=2)
    x = jnp.zeros((1, 96, 96, 3))
    variables = module.init(jax.random.key(0), x, train=False)
    logit = jax.jit(lambda x: module.apply(variables, x, train=False)[0, 5, 5, 0])
    seen = jnp.any(jax.grad(logit)(x + 1.0)[0] != 0.0, axis=-1)
    assert (seen.any(axis=0).sum(), seen.any(axis=1).sum()) == (70, 70)


@pytest.mark.parametrize("attention", [(4,), None])
def test_encoder_and_decoder_compute_in_bfloat16_on_request(attention):
    """Their outputs are close to those in float32."""
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


def test_almost_constant_maps_are_normalised_as_published():
    """With a mean of 1 and a variance of 4e-6, the epsilon in (h - m) / sqrt(v + 1e-6) matters."""
    h = 1.0 + 2e-3 * np.random.default_rng(0).standard_normal((2, 8, 8, 32)).astype(np.float32)
    normalised, _ = Normalised().init_with_output(jax.random.key(0), jnp.asarray(h))
    exact = h.astype(np.float64)
    centred = exact - exact.mean(axis=(1, 2), keepdims=True)
    expected = centred / np.sqrt(exact.var(axis=(1, 2), keepdims=True) + 1e-6)
    np.testing.assert_allclose(normalised, expected, atol=2e-4)


def test_channels_not_divisible_into_32_groups_are_refused():
    with pytest.raises(ValueError, match="a width of 48 is not divisible into 32 groups"):
        Levels(channels=48, channel_mult=(1, 2))


def test_invalid_codebook_settings_are_refused():
    with pytest.raises(ValueError, match="entries=0"):
        Quantiser(entries=0, width=3)
    with pytest.raises(ValueError, match="beta=-1"):
        Quantiser(entries=4, width=3, beta=-1.0)


def test_invalid_gan_loss_settings_are_refused():
    with pytest.raises(ValueError, match="loss='wasserstein' is none of hinge, softplus"):
        GANLoss(loss="wasserstein")
    with pytest.raises(ValueError, match="start=-1"):
        GANLoss(start=-1)


def test_quantising_finds_the_nearest_entry_of_a_fresh_codebook():
    """The reference is a search through all distances. Quantising entries returns them with zero loss."""
    quantiser = Quantiser(entries=8, width=3)
    codebook = quantiser.init(jax.random.key(0))
    assert float(jnp.abs(codebook).max()) <= 1 / 8
    z = jax.random.normal(jax.random.key(1), (2, 3, 5, 3)) / 8
    quantised = quantiser(codebook, z)
    distances = np.linalg.norm(np.asarray(z)[..., None, :] - np.asarray(codebook), axis=-1)
    np.testing.assert_array_equal(quantised.indices, distances.argmin(axis=-1))
    np.testing.assert_array_equal(quantised.values, codebook[quantised.indices])
    again = quantiser(codebook, quantised.values)
    assert float(again.loss) == 0.0
    np.testing.assert_array_equal(again.values, quantised.values)


def test_codebook_usage_matches_the_counts_of_the_entries():
    in_use = usage(jnp.asarray([[0, 0, 2], [2, 3, 3]]), 5)
    np.testing.assert_allclose(in_use.perplexity, np.exp(entropy([2, 2, 2])), rtol=1e-6)
    assert int(in_use.used) == 3


def test_divergence_from_standard_is_cross_entropy_minus_entropy(x64):
    features = jax.random.normal(jax.random.key(0), (3, 4, 4, 6))
    posterior = Gaussian.from_log_variance(features)
    expected = posterior.cross_entropy_to_standard() - posterior.entropy()
    np.testing.assert_allclose(posterior.divergence_from_standard(), expected, atol=1e-14)


def test_scaled_latents_have_unit_deviation():
    z = 3.0 * jax.random.normal(jax.random.key(0), (2, 4, 4, 3)) + 1.0
    np.testing.assert_allclose(np.std(np.asarray(unit_scale(z) * z), ddof=1), 1.0, rtol=1e-6)


def test_the_perceptual_distance_is_zero_and_flat_between_equal_images():
    """The gradient is finite even where all features are zero."""
    module = LPIPS(widths=(4, 4), convolutions=(1, 1))
    x = jnp.zeros((2, 4, 4, 3))
    variables = module.init(jax.random.key(0), x, x)
    dead = jax.tree.map(jnp.zeros_like, variables["params"])
    for params in (variables["params"], dead):
        distance = lambda a, params=params: module.apply({**variables, "params": params}, a, x).sum()
        value, gradient = jax.value_and_grad(distance)(x)
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradient, 0.0)
