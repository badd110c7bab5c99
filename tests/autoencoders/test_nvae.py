"""NVAE: published sizes, the flow, batch statistics; parity with the original is in tests/test_oracles.py."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.autoencoders.nvae import NVAE
from lsgm_jax.autoencoders.nvae_cells import (
    NORM_EPS,
    NORM_MOMENTUM,
    BatchNorm,
    Conv,
    DownSkip,
    double_bilinear,
    kernel_norms,
    normalised,
)
from lsgm_jax.autoencoders.nvae_flow import FlowCell, FlowPair
from lsgm_jax.evaluation.model_size import flops_by_dtype
from tests import tiny

TINY = tiny.nvae(groups_per_scale=2, flows=1)
IMAGE = (8, 8, 1)


class Published(NamedTuple):
    """Measurements of a published network.

    Attributes:
        fields: settings of `NVAE`.
        image: height, width and channels of an image.
        parameters: number of parameters.
        convolutions: number of convolutions.
        norms: number of normalisations.
        forward: billions of operations in convolutions and matrix products of the forward pass, per image.
        decode: the same of the decoder.
    """

    fields: dict
    image: tuple[int, int, int]
    parameters: int
    convolutions: int
    norms: int
    forward: float
    decode: float


TWO_CELLS = dict(out_channels=100, encoder_cells=2, decoder_cells=2)
CIFAR10 = dict(arch="res_bnswish", out_channels=100)
CELEBA = dict(TWO_CELLS, flows=2, input_skip=True)
PUBLISHED = {
    "mnist": Published(
        dict(channel_mult=(1, 2, 2), pre_blocks=2, post_blocks=2, pre_cells=3, post_cells=3),
        (32, 32, 1),
        *(3_005_822, 59, 48, 1.40, 0.54),
    ),
    "omniglot": Published(
        dict(groups_per_scale=3, encoder_cells=3, decoder_cells=3),
        (32, 32, 1),
        *(5_384_190, 73, 66, 2.99, 1.28),
    ),
    "cifar10": Published(
        dict(CIFAR10, **TWO_CELLS, groups_per_scale=20, latent_channels=9)
        | dict(encoder_channels=128, decoder_channels=128),
        (32, 32, 3),
        *(100_867_740, 254, 168, 52.98, 26.68),
    ),
    "cifar10_nll": Published(
        dict(CIFAR10, groups_per_scale=4, latent_channels=45, encoder_channels=256, decoder_channels=256)
        | dict(pre_cells=3, post_cells=3, encoder_cells=3, decoder_cells=3, flows=2),
        (32, 32, 3),
        *(130_622_772, 130, 60, 76.83, 38.81),
    ),
    "celeba_quantitative": Published(
        dict(CELEBA, scales=3, groups_per_scale=8, channel_mult=(1, 1, 2, 4)),
        (256, 256, 3),
        *(51_296_572, 662, 314, 302.3, 118.1),
    ),
    "celeba_qualitative": Published(
        dict(CELEBA, scales=2, groups_per_scale=10, channel_mult=(1, 1, 2)),
        (256, 256, 3),
        *(17_789_540, 547, 259, 269.8, 100.2),
    ),
}


def noises_like(module, image, batch, key=0):
    keys = jax.random.split(jax.random.key(key), module.group_count)
    shapes = module.latent_shapes(image)
    return tuple(jax.random.normal(k, (batch, *shape)) for k, shape in zip(keys, shapes, strict=True))


def inputs_of(module, image):
    """Returns the shapes of one image and its noise."""
    shapes = [image, *module.latent_shapes(image)]
    x, *noises = (jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in shapes)
    return x, tuple(noises)


def shapes_of(module, image):
    """Returns the shapes of the variables, without allocating them."""
    init = functools.partial(module.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), *inputs_of(module, image))


@functools.cache
def drawn():
    """Draws all variables of a tiny NVAE at random, with images and noise."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(0.0, 0.5, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes_of(TINY, IMAGE))
    x = jax.random.uniform(jax.random.key(1), (2, *IMAGE), minval=-1.0)
    return variables, x, noises_like(TINY, IMAGE, batch=2)


evaluate = jax.jit(functools.partial(TINY.apply, train=False))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_measured_size(name):
    published = PUBLISHED[name]
    module = NVAE(**published.fields)
    variables = shapes_of(module, published.image)
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    assert sum(math.prod(leaf.shape) for _, leaf in leaves) == published.parameters
    last = [(path[-1].key, leaf.ndim) for path, leaf in leaves]
    assert last.count(("kernel", 4)) == published.convolutions
    assert last.count(("scale", 1)) == published.norms
    x, noises = inputs_of(module, published.image)
    forward = jax.make_jaxpr(functools.partial(module.apply, train=False))(variables, x, noises)
    decode = jax.make_jaxpr(functools.partial(module.apply, method="decode"))(variables, noises)
    # The published figures have four digits.
    np.testing.assert_allclose(billions(forward), published.forward, rtol=1e-3, atol=0.005)
    np.testing.assert_allclose(billions(decode), published.decode, rtol=1e-3, atol=0.005)


def billions(closed):
    """Counts billions of operations in convolutions and matrix products, two per multiply-add."""
    return sum(flops_by_dtype(closed.jaxpr).values()) / 1e9


def test_decoding_the_sampled_latents_gives_the_features_of_the_forward_pass():
    variables, x, noises = drawn()
    output = evaluate(variables, x, noises)
    decode = jax.jit(functools.partial(TINY.apply, method="decode"))
    features = decode(variables, tuple(group.eps for group in output.groups))
    np.testing.assert_allclose(features, output.features, atol=1e-5)


def test_a_group_depends_on_the_draws_of_the_groups_before_it_only():
    variables, x, noises = drawn()
    before = evaluate(variables, x, noises).groups
    after = evaluate(variables, x, (*noises[:1], noises[1] + 1.0, *noises[2:])).groups
    moved = [
        float(jnp.max(jnp.abs(a.posterior.mean - b.posterior.mean)))
        for a, b in zip(before, after, strict=True)
    ]
    assert moved[0] == moved[1] == 0.0
    assert min(moved[2:]) > 0.0


def ordered_jacobian(module, key, shape):
    """Returns the Jacobian of a flow, with inputs and outputs in raster order: pixels, then latent channels."""
    z = jax.random.normal(key, (1, *shape))
    variables = module.init(key, z)
    jacobian = jax.jacobian(lambda z: module.apply(variables, z).reshape(-1))(z)
    return jacobian.reshape(z.size, z.size)


@pytest.mark.usefixtures("x64")
def test_flow_cells_are_triangular_and_depend_on_all_entries_before():
    jacobian = ordered_jacobian(FlowCell(mirrored=False), jax.random.key(0), (3, 4, 2))
    np.testing.assert_array_equal(jacobian, np.tril(jacobian))
    np.testing.assert_array_equal(np.diag(jacobian), 1.0)
    # Convolutions of 3x3 and 5x5 reach three pixels to the left, so an entry depends on all entries before in its row.
    row = jacobian[:8, :8]
    assert np.all(row[np.tril_indices(8, -1)] != 0.0)


@pytest.mark.usefixtures("x64")
def test_mirrored_flow_cells_reverse_the_pixels_but_not_the_channels():
    jacobian = ordered_jacobian(FlowCell(mirrored=True), jax.random.key(0), (3, 4, 2))
    pixels = jacobian.reshape(12, 2, 12, 2)[::-1, :, ::-1].reshape(24, 24)
    np.testing.assert_array_equal(pixels, np.tril(pixels))
    assert np.all(pixels[:8, :8][np.tril_indices(8, -1)] != 0.0)


@pytest.mark.usefixtures("x64")
def test_flow_pairs_preserve_volume():
    jacobian = ordered_jacobian(FlowPair(), jax.random.key(0), (3, 4, 2))
    np.testing.assert_allclose(np.linalg.slogdet(jacobian), (1.0, 0.0), atol=1e-12)
    assert np.max(np.abs(np.triu(jacobian, 1))) > 1e-3  # the Jacobian of a pair is not triangular


def test_batch_statistics_move_by_momentum_and_hold_the_unbiased_variance():
    h = 2.0 + 3.0 * jax.random.normal(jax.random.key(0), (2, 3, 2, 5))
    norm = BatchNorm()
    start = norm.init(jax.random.key(0), h, train=True)
    assert float(jnp.max(jnp.abs(start["batch_stats"]["mean"]))) == 0.0
    y, moved = norm.apply(start, h, train=True, mutable=["batch_stats"])
    rows = np.asarray(h).reshape(-1, 5)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], NORM_MOMENTUM * rows.mean(0), rtol=1e-5)
    expected = 1.0 - NORM_MOMENTUM + NORM_MOMENTUM * rows.var(0, ddof=1)
    np.testing.assert_allclose(moved["batch_stats"]["var"], expected, rtol=1e-5)
    # The batch itself is normalised by the biased variance, up to the epsilon.
    np.testing.assert_allclose(np.var(np.asarray(y).reshape(-1, 5), axis=0), 1.0, atol=1e-4)
    # If "batch_stats" is immutable, the statistics of the batch are used too.
    np.testing.assert_array_equal(norm.apply(start, h, train=True), y)
    np.testing.assert_allclose(norm.apply(start, h, train=False), h / np.sqrt(1.0 + 1e-5), rtol=1e-6)


def normalised_with(running_mean):
    """BatchNorm of maps [batch, h, w, 5] with this running mean."""
    norm = BatchNorm()
    start = norm.init(jax.random.key(0), jnp.ones((2, 3, 2, 5)), train=True)
    start["batch_stats"]["mean"] = jnp.broadcast_to(running_mean, 5).astype(jnp.result_type(float))
    return lambda h: norm.apply(start, h, train=True)


def two_passes(h):
    """The definition: the mean first, then the mean square of what differs from it."""
    mean = jnp.mean(h, axis=(0, 1, 2))
    return (h - mean) / jnp.sqrt(jnp.mean((h - mean) ** 2, axis=(0, 1, 2)) + NORM_EPS)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("running_mean", [0.0, 2.0, -5.0])
def test_batch_statistics_in_one_pass_are_those_of_two(running_mean):
    """For any running mean, and so are the gradients, of which none is that of the running mean."""
    h = 2.0 + 3.0 * jax.random.normal(jax.random.key(0), (4, 3, 2, 5))
    weights = jax.random.normal(jax.random.key(1), h.shape)
    norm = normalised_with(running_mean)
    np.testing.assert_allclose(norm(h), two_passes(h), rtol=1e-12, atol=1e-12)
    found, expected = (jax.grad(lambda h, f=f: jnp.sum(weights * f(h) ** 2))(h) for f in (norm, two_passes))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    through = jax.grad(lambda mean: jnp.sum(weights * normalised_with(mean)(h)))(jnp.full(5, running_mean))
    np.testing.assert_array_equal(through, 0.0)


def test_batch_statistics_of_features_far_from_zero():
    """In float32, means a thousand standard deviations from zero cost no digits once the running mean is near."""
    h = 1000.0 + jax.random.normal(jax.random.key(0), (16, 8, 8, 5))
    rows = np.asarray(h, np.float64)
    expected = (rows - rows.mean((0, 1, 2))) / np.sqrt(rows.var((0, 1, 2)) + NORM_EPS)
    error = np.abs(normalised_with(999.0)(h) - expected).max()
    assert error < 2.0 * np.abs(np.asarray(two_passes(h)) - expected).max() + 1e-6


def test_gradients_do_not_flow_into_the_running_statistics():
    h = jax.random.normal(jax.random.key(0), (2, 3, 2, 5))
    start = BatchNorm().init(jax.random.key(0), h, train=True)
    stored = lambda h: BatchNorm().apply(start, h, train=True, mutable=["batch_stats"])[1]["batch_stats"][
        "var"
    ]
    np.testing.assert_array_equal(jax.jacobian(stored)(h), 0.0)


def test_fresh_convolutions_have_the_norms_of_their_initial_kernels():
    h = jnp.ones((1, 4, 4, 7))
    params = Conv(5, 3).init(jax.random.key(0), h)["params"]
    norms = kernel_norms(params["kernel"])
    np.testing.assert_allclose(params["log_norm"], jnp.log(norms + 0.01), rtol=1e-6)
    np.testing.assert_allclose(
        kernel_norms(normalised(params["kernel"], params["log_norm"])), norms + 0.01, rtol=1e-4
    )


def test_bilinear_doubling_is_exact_on_linear_functions_between_aligned_corners():
    rows, columns = jnp.meshgrid(jnp.linspace(0, 1, 3), jnp.linspace(0, 1, 5), indexing="ij")
    doubled = double_bilinear(double_bilinear((rows + 2 * columns)[None, :, :, None], 1), 2)[0, ..., 0]
    rows, columns = jnp.meshgrid(jnp.linspace(0, 1, 6), jnp.linspace(0, 1, 10), indexing="ij")
    np.testing.assert_allclose(doubled, rows + 2 * columns, atol=1e-6)
    np.testing.assert_array_equal(double_bilinear(jnp.full((1, 1, 1, 1), 3.0), 1), 3.0)


def test_the_down_skip_maps_each_pixel_of_a_block_to_its_share_of_the_channels():
    h = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
    skip = DownSkip(11)
    variables = skip.init(jax.random.key(1), h)
    jacobian = jax.jacobian(lambda h: skip.apply(variables, h)[0, 1, 1])(h)[:, 0]
    seen = np.argwhere(np.abs(jacobian).sum(-1) > 0)
    corners = [(2, 2)] * 2 + [(3, 3)] * 2 + [(2, 3)] * 2 + [(3, 2)] * 5
    assert [tuple(where) for where in seen] == [(i, *corner) for i, corner in enumerate(corners)]


def test_names_with_attention_build_the_same_network():
    assert NVAE(arch="res_mbconv_attn_half").expansions() == NVAE(arch="res_mbconv").expansions()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(arch="resnet"), "arch='resnet' is not one of res_bnswish, res_mbconv"),
        (dict(channel_mult=(1, 2)), r"3 factors, got post_blocks=1, channel_mult=\(1, 2\)"),
        (dict(post_blocks=2), r"post_blocks=1\b.*got post_blocks=2"),
    ],
)
def test_inconsistent_settings_are_named(fields, message):
    _, x, noises = drawn()
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields).init(jax.random.key(0), x, noises, train=False)


def test_wrong_images_and_numbers_of_latents_are_named():
    variables, x, noises = drawn()
    with pytest.raises(ValueError, match="whose sides 4 divides, got 6 x 8"):
        TINY.latent_shapes((6, 8, 1))
    with pytest.raises(ValueError, match="4 groups of latents, got 3"):
        TINY.apply(variables, x, noises[:3], train=False)
