"""Published sizes of NCSN++, to the parameter; FIR resampling; independence of samples; the MLP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from lsgm_jax.evaluation.model_size import count_parameters, flops
from lsgm_jax.nn.mlp import MLP, log_time_features
from lsgm_jax.nn.ncsnpp import NCSNpp
from lsgm_jax.nn.ncsnpp_layers import FourierFeatures, fir_downsample, fir_upsample
from lsgm_jax.nn.network import Network
from tests.nn.published import NETWORKS, operations

KERNEL = (1.0, 3.0, 3.0, 1.0)
TINY = {
    "out_channels": 2,
    "channels": 8,
    "channel_mult": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "dropout": 0.5,
}
VARIANTS = {
    "lsgm": {"embedding_dim": 16},
    "cld": {"embedding": "fourier", "embedding_scale": 16.0, "input_pyramid": "residual"},
    "plain": {"fir": None, "embedding_scale": 1.0, "rescale": False},
}


def shapes_of(published):
    z_t = jax.ShapeDtypeStruct((1, *published.shape), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    init = functools.partial(published.module.init, deterministic=True)
    return jax.eval_shape(init, jax.random.key(0), z_t, t), z_t, t


@pytest.mark.parametrize("name", NETWORKS)
def test_published_parameters_and_operations(name):
    published = NETWORKS[name]
    variables, z_t, t = shapes_of(published)
    assert count_parameters(variables["params"]) + published.mixing_logits == published.parameters
    jaxpr = jax.make_jaxpr(functools.partial(published.module.apply, deterministic=True))(variables, z_t, t)
    assert operations(jaxpr.jaxpr) / 1e9 == pytest.approx(published.gflop, rel=2e-3)


@pytest.mark.parametrize("name", ["cld_celeba_paper", "cld_celeba_post_paper"])
def test_published_operations_by_cost_analysis(name):
    """At resolutions where padding, which XLA does not count, is a small share."""
    published = NETWORKS[name]
    forward = functools.partial(published.module.apply, deterministic=True)
    assert flops(forward, *shapes_of(published)) / 1e9 == pytest.approx(published.gflop, rel=0.02)


@pytest.mark.parametrize("kernel", [KERNEL, (1.0, 1.0), (1.0, 4.0, 6.0, 6.0, 4.0, 1.0)])
def test_fir_up_then_down_preserves_constants_and_ramps(x64, kernel):
    """The gain is one and there is no subpixel shift, away from the zero padding at the border."""
    rows, columns = jnp.meshgrid(jnp.arange(16.0), jnp.arange(16.0), indexing="ij")
    h = jnp.stack([jnp.full((16, 16), 3.0), 2.0 * rows - columns], axis=-1)[None]
    up = fir_upsample(h, kernel)
    back = fir_downsample(up, kernel)
    inner = np.s_[:, 4:-4, 4:-4]
    np.testing.assert_allclose(back[inner], h[inner], atol=1e-13)
    np.testing.assert_allclose(up[:, 8:-8, 8:-8, 0], 3.0, rtol=1e-13)


def test_fir_upsampling_is_a_convolution_of_the_zero_interleaved_pixels(x64):
    h = jax.random.normal(jax.random.key(0), (6, 6))
    spread = np.zeros((12, 12))
    spread[::2, ::2] = h
    kernel = (1.0, 2.0, 4.0, 1.0)  # not symmetric, to test the direction
    taps = 4.0 * np.outer(kernel, kernel) / np.sum(kernel) ** 2
    expected = scipy.signal.convolve2d(np.pad(spread, ((2, 1), (2, 1))), taps, mode="valid")
    np.testing.assert_allclose(fir_upsample(h[None, :, :, None], kernel)[0, :, :, 0], expected, rtol=1e-12)


def test_fir_down_is_the_adjoint_of_up(x64):
    x, y = (jax.random.normal(jax.random.key(side), (1, side, side, 3)) for side in (8, 16))
    np.testing.assert_allclose(
        jnp.vdot(fir_upsample(x, KERNEL), y), 4.0 * jnp.vdot(x, fir_downsample(y, KERNEL)), rtol=1e-12
    )


def drawn(module, *shapes):
    """Draws variables of a network, with non-zero last layers, without compiling its `init`."""
    init = functools.partial(module.init, deterministic=True)
    expected = jax.eval_shape(init, jax.random.key(0), *(jnp.zeros(shape) for shape in shapes))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(
        rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype
    )
    return jax.tree.map(draw, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_time_and_every_position_affect_only_their_sample(x64, variant):
    module = NCSNpp(**TINY | VARIANTS[variant])
    z_t, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 4)), jnp.array([0.2, 0.9])
    variables = drawn(module, z_t.shape, t.shape)
    apply = jax.jit(functools.partial(module.apply, variables, deterministic=True))
    before = apply(z_t, t)
    for after in (apply(z_t.at[1, -1, -1, -1].add(1.0), t), apply(z_t, t.at[1].set(0.5))):
        np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
        assert np.abs(after[1] - before[1])[0, 0].min() > 1e-6


SMALLEST = NCSNpp(**TINY | VARIANTS["cld"] | {"channel_mult": (1,)})
INPUT = (jnp.linspace(-2.0, 2.0, 256).reshape(1, 8, 8, 4), jnp.array([0.5]))


def test_a_fresh_network_predicts_almost_zero():
    """The mixed score therefore starts at its Gaussian part."""
    init = jax.jit(functools.partial(SMALLEST.init_with_output, deterministic=True))
    eps, _ = init(jax.random.key(1), *INPUT)
    assert 0.0 < np.abs(eps).max() < 1e-3


def test_fourier_frequencies_are_constants_with_a_default():
    features = FourierFeatures(frequencies=8, scale=16.0)
    stored, constants = features.init_with_output(jax.random.key(0), INPUT[1])
    np.testing.assert_array_equal(features.apply({}, INPUT[1]), stored)
    doubled = jax.tree.map(lambda w: 2.0 * w, constants)
    np.testing.assert_allclose(features.apply(doubled, INPUT[1] ** 0.5), stored, atol=1e-4)
    assert drawn(SMALLEST, (1, 8, 8, 4), (1,)).keys() == {"params", "constants"}


def test_dropout_depends_on_its_key():
    network = Network(SMALLEST)
    params = drawn(SMALLEST, (1, 8, 8, 4), (1,))["params"]
    apply = jax.jit(lambda key: network.apply(params, *INPUT, dropout_key=key))
    one, two = apply(jax.random.key(1)), apply(jax.random.key(2))
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding": "cosine"}, "embedding='cosine': use 'positional' or 'fourier'"),
        ({"input_pyramid": "sum"}, "input_pyramid='sum': use 'none' or 'residual'"),
        ({"input_pyramid": "residual", "fir": None}, "needs fir"),
    ],
)
def test_invalid_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        NCSNpp(**TINY | settings)


def test_maps_that_cannot_be_halved_are_refused():
    module = NCSNpp(**TINY)
    with pytest.raises(ValueError, match=r"\(7, 7, 4\): 2 levels need sides divisible by 2"):
        jax.eval_shape(
            lambda: module.init(jax.random.key(0), jnp.ones((1, 7, 7, 4)), jnp.ones(1), deterministic=True)
        )


def test_mlp_without_hidden_layers_is_affine_in_state_and_time(x64):
    module, key = MLP(out_channels=2, hidden=()), jax.random.key(0)
    z_t, t = jax.random.normal(key, (3, 4)), jnp.array([0.1, 0.5, 0.9])
    variables = module.init(key, z_t, t, deterministic=True)
    middle = module.apply(variables, z_t[:1] / 2 + z_t[1:2] / 2, t[:1] / 2 + t[1:2] / 2, deterministic=True)
    np.testing.assert_allclose(
        middle[0], module.apply(variables, z_t, t, deterministic=True)[:2].mean(0), rtol=1e-12
    )


def test_mlp_time_features_are_octaves_of_log_time():
    """The slowest have period 8 * 2 pi in log t; below 1e-6 they are almost constant, and finite at zero."""
    t = jnp.array([1.0, np.exp(-4.0 * np.pi), 1e-9, 0.0])
    features = log_time_features(t, 3)
    assert features.shape == (4, 6)
    np.testing.assert_allclose(features[0], [0, 0, 0, 1, 1, 1], atol=1e-5)
    np.testing.assert_allclose(features[2], features[3], atol=2e-3)
    angle = np.log(np.asarray(t) + 1e-6)
    np.testing.assert_allclose(features[:, 2], np.sin(angle / 2.0), atol=1e-5)
    np.testing.assert_allclose(features[:, 3], np.cos(angle / 8.0), atol=1e-5)
    assert log_time_features(t, 0).shape == (4, 0)
