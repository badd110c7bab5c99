"""Decoder distributions of LSGM: log probabilities, means, samples and the reduction to fewer bits."""

import re

import jax.numpy as jnp
import numpy as np

from lsgm_jax.autoencoders.gaussian import LOG_2PI, Gaussian
from lsgm_jax.autoencoders.likelihoods import Bernoulli, Cropped, DiscretisedLogistic, GaussianPixels
from lsgm_jax.autoencoders.mixture import MixtureOfLogistics
from lsgm_jax.data.pixels import quantise

# Quirk: the original replaces masses up to this by density times width.
DENSITY_BELOW = 1e-5
# Quirk: the constant of its standard normal density, half of log 2 pi, is rounded.
ROUNDED_CONSTANT = 0.9189385332


def published(decoder_dist, bits=8, padded=False):
    """Our likelihood for a name of the original's."""
    levels = 2**bits
    likelihood = {
        "bin": Bernoulli(),
        "dl": DiscretisedLogistic(levels=levels, density_below=DENSITY_BELOW),
        "dml": MixtureOfLogistics(levels=levels, density_below=DENSITY_BELOW),
        "normal": GaussianPixels(levels=levels),
    }[decoder_dist]
    return Cropped(likelihood, 2) if padded else likelihood


def channels_last(value):
    return jnp.moveaxis(value, 1, -1)


def channels_first(value):
    return np.moveaxis(np.asarray(value), -1, 1)


def check(fixture, name, value, rtol=1e-10):
    """To `rtol` of the output's scale; in float32 to 2e-5 of it."""
    scale = np.abs(fixture.arrays[f"out/{name}"]).max()
    fixture.check(name, value, rtol=rtol, atol=rtol * scale, single_atol=2e-5 * scale)


def each_value(likelihood, features, x):
    """Log p value by value: every value becomes an image of its own, with its share of the features."""
    per_value = features.reshape(*x.shape[:-1], -1, x.shape[-1]).swapaxes(-1, -2)
    log_p = likelihood.log_prob(per_value.reshape(x.size, 1, 1, -1), x.reshape(-1, 1, 1, 1))
    return channels_first(log_p.reshape(x.shape))


def each_pixel(likelihood, features, x):
    """Log p pixel by pixel."""
    pixel = lambda values: values.reshape(-1, 1, 1, values.shape[-1])
    return likelihood.log_prob(pixel(features), pixel(x)).reshape(x.shape[:-1])


def check_unclipped_mean(fixture, name, likelihood, features, centre, rtol=1e-10):
    """Quirk: the original's means of these two may leave [-1, 1]."""
    check(fixture, name, channels_first(centre), rtol)
    np.testing.assert_array_equal(likelihood.mean(features), jnp.clip(centre, -1.0, 1.0))


def centre_of(likelihood, features):
    if isinstance(likelihood, GaussianPixels):
        return Gaussian.from_features(features).mean
    return jnp.split(features, 2, axis=-1)[0]


def check_distributions(fixture):
    image = lambda name: channels_last(fixture.input(f"in/{name}"))
    for name, decoder_dist, features in (
        ("bernoulli", "bin", image("bernoulli/logits")),
        ("dl", "dl", image("dl/logits")),
        ("normal_decoder", "normal", image("normal_decoder/logits")),
    ):
        likelihood = published(decoder_dist)
        check(fixture, f"{name}/log_p", each_value(likelihood, features, image(f"{name}/x")))
        if name == "bernoulli":
            check(fixture, f"{name}/mean", channels_first(likelihood.mean(features)))
        else:
            centre = centre_of(likelihood, features)
            check_unclipped_mean(fixture, f"{name}/mean", likelihood, features, centre)
    log_std = Gaussian.from_features(image("normal_decoder/logits")).log_std
    check(fixture, "normal_decoder/log_sigma", channels_first(log_std))
    check_normal(fixture)
    for name in sorted(fixture.outputs()):
        if found := re.fullmatch(r"dml(\d+)/log_p", name):
            check_mixture(fixture, int(found[1]))
        elif found := re.fullmatch(r"bits/(\d+)/in_0_1", name):
            check_bits(fixture, int(found[1]))


def check_normal(fixture):
    mean, log_std, x = (fixture.input(f"in/normal/{name}") for name in ("mu", "log_sigma", "x"))
    zero = jnp.zeros_like(x)
    check(fixture, "normal/log_p", Gaussian(mean, log_std).log_density(x))
    rounding = 0.5 * LOG_2PI - ROUNDED_CONSTANT
    check(fixture, "log_p_standard_normal", Gaussian(zero, zero).log_density(x) + rounding)
    for name in fixture.outputs():
        if found := re.fullmatch(r"log_p_var_normal_(.*)", name):
            log_std = zero + 0.5 * jnp.log(float(found[1]))
            check(fixture, name, Gaussian(zero, log_std).log_density(x))


def check_mixture(fixture, bits):
    name, likelihood = f"dml{bits}", published("dml", bits)
    image = lambda part: channels_last(fixture.input(f"in/{name}/{part}"))
    features = image("logits")
    check(fixture, f"{name}/log_p", each_pixel(likelihood, features, image("x")))
    check(fixture, f"{name}/mean", channels_first(likelihood.mean(features)))
    drawn = likelihood.draw(features, image("uniform_mixture"), image("uniform_logistic"))
    check(fixture, f"{name}/sample", channels_first(drawn))


def check_bits(fixture, bits):
    """The original's numbers are float32."""
    x = quantise(np.asarray(fixture.arrays["in/bits/pixel_uint8"]), 2**bits)
    check(fixture, f"bits/{bits}/symmetric", x, rtol=2e-7)
    check(fixture, f"bits/{bits}/in_0_1", 0.5 * (x + 1.0), rtol=2e-7)


def decoder_of(fixture):
    """The likelihood of an NVAE fixture."""
    h = fixture.spec["hyper_parameters"]
    padded = h["dataset"] in ("mnist", "omniglot")
    return published(h["decoder_dist"], h["num_x_bits"], padded)


def check_decoder(fixture, mode, features=None, rtol=1e-9):
    """`recon_loss` and `decoder_mean` of an NVAE fixture.

    Args:
        mode: the prefix of its outputs, "eval" or "train".
        features: what our decoder made, channels last; None takes the stored logits, some of which are rounded.
    """
    likelihood = decoder_of(fixture)
    if features is None:
        stored = np.asarray(fixture.arrays[f"out/{mode}/logits"])
        features = channels_last(jnp.asarray(stored, jnp.zeros(()).dtype))
        rtol = 1e-6 if stored.dtype == np.float32 else 1e-10
    x = channels_last(fixture.input("in/x"))
    check(fixture, f"{mode}/recon_loss", -likelihood.log_prob(features, x), rtol)
    name = f"{mode}/decoder_mean"
    if isinstance(likelihood, (DiscretisedLogistic, GaussianPixels)):
        check_unclipped_mean(fixture, name, likelihood, features, centre_of(likelihood, features), rtol)
    else:
        check(fixture, name, channels_first(likelihood.mean(features)), rtol)


def check_generated(fixture, features, rtol=1e-9):
    """`eval/generated_image` of an NVAE fixture, from what our decoder made of the recorded noise as latents."""
    image = 0.5 * (decoder_of(fixture).mean(features) + 1.0)
    check(fixture, "eval/generated_image", channels_first(image), rtol)


CHECKS = {"dist": check_distributions}
