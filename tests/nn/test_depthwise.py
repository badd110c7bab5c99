"""The depthwise convolution equals `lax.conv`, in every mode of differentiation, on CPU as on other platforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.nn.depthwise import depthwise_conv
from tests.on_one_machine import run_program

WINDOWS = [(5, 5), (3, 5), (1, 1)]


def by_lax(h, kernel):
    return jax.lax.conv_general_dilated(
        h,
        kernel,
        (1, 1),
        [(size // 2, size // 2) for size in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=h.shape[-1],
    )


def draw(*shape, dtype=jnp.float64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def maps_and_kernel(window=(5, 5), dtype=jnp.float64):
    return draw(3, 6, 7, 4, dtype=dtype), draw(*window, 1, 4, dtype=dtype, seed=1)


def assert_same(function, rtol=1e-12):
    """Compares what a function makes of both convolutions, compiled."""
    ours, theirs = (jax.jit(lambda conv=conv: function(conv))() for conv in (depthwise_conv, by_lax))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("window", WINDOWS)
def test_output_and_gradients(x64, window):
    h, kernel = maps_and_kernel(window)
    g = draw(*h.shape, seed=2)

    def output_and_gradients(conv):
        out, pull = jax.vjp(conv, h, kernel)
        return out, pull(g)

    assert_same(output_and_gradients)


def test_forward_mode(x64):
    h, kernel = maps_and_kernel()
    assert_same(lambda conv: jax.jvp(conv, (h, kernel), (2.0 * h + 1.0, kernel**2)))


def test_derivatives_of_derivatives(x64):
    h, kernel = maps_and_kernel()
    cube = lambda conv: lambda h, kernel: jnp.sum(conv(h, kernel) ** 3)
    assert_same(lambda conv: jax.jvp(jax.grad(cube(conv), (0, 1)), (h, kernel), (h**2, kernel**2)))
    assert_same(lambda conv: jax.grad(lambda k: jnp.sum(jax.grad(cube(conv), 1)(h, k) ** 2))(kernel))


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (3, 2)])
def test_batched(x64, axes):
    h, kernel = maps_and_kernel()
    stacked = [
        x if axis is None else jnp.stack([x, x**2], axis) for x, axis in zip((h, kernel), axes, strict=True)
    ]
    loss = lambda conv: lambda h, kernel: jnp.sum(conv(h, kernel) ** 2)
    assert_same(lambda conv: jax.vmap(conv, axes)(*stacked))
    assert_same(lambda conv: jax.vmap(jax.grad(loss(conv), (0, 1)), axes)(*stacked))


def test_half_precision_sums_in_single_precision():
    """In bfloat16 the result is the rounded result of float32, so long sums lose nothing."""
    h, kernel = maps_and_kernel(dtype=jnp.bfloat16)
    exact = depthwise_conv(h.astype(jnp.float32), kernel.astype(jnp.float32))
    assert jnp.array_equal(depthwise_conv(h, kernel), exact.astype(jnp.bfloat16))
    of_kernel = lambda h, kernel: jax.grad(lambda k: jnp.sum(depthwise_conv(h, k).astype(jnp.float32)))(
        kernel
    )
    exact = of_kernel(h.astype(jnp.float32), kernel.astype(jnp.float32))
    assert jnp.array_equal(of_kernel(h, kernel), exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_convolve_by_lax(platform):
    h, kernel = maps_and_kernel(dtype=jnp.float32)
    gradient = jax.jit(jax.grad(lambda h, kernel: jnp.sum(depthwise_conv(h, kernel) ** 2), (0, 1)))
    program = gradient.trace(h, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == 3
    assert "stablehlo.while" not in program


def test_kernels_of_other_shapes_are_refused():
    h, kernel = maps_and_kernel(dtype=jnp.float32)
    with pytest.raises(ValueError, match="odd"):
        depthwise_conv(h, kernel[:4])
    with pytest.raises(ValueError, match="4 channels"):
        depthwise_conv(h, kernel[..., :3])
    with pytest.raises(ValueError, match="bfloat16"):
        depthwise_conv(h, kernel.astype(jnp.bfloat16))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from lsgm_jax.nn.depthwise import depthwise_conv
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
gradient = jax.grad(lambda h, kernel: jnp.sum(depthwise_conv(h, kernel) ** 2), (0, 1))
h, kernel = (jnp.asarray(np.random.default_rng(0).normal(size=s), jnp.float32) for s in ((8, 6, 6, 4), (5, 5, 1, 4)))
split = jax.device_put(h, NamedSharding(mesh, PartitionSpec("data")))
for one, four in zip(jax.jit(gradient)(h, kernel), jax.jit(gradient)(split, kernel)):
    np.testing.assert_allclose(one, four, rtol=1e-5, atol=1e-4)
print(len(jax.jit(gradient)(split, kernel)[0].sharding.device_set))
"""


def test_a_batch_split_over_devices():
    (done,) = run_program(SHARDED, processes=1, devices=4, join="")
    assert (done.status, done.out.strip()) == (0, "4"), done.err
