"""`convolve` equals `lax.conv` in every mode of differentiation, and its gradients take no longer in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.nn.convolution import KERNEL, MAPS, OUTPUT, convolve, multiply_adds
from lsgm_jax.nn.layers import Conv
from tests.on_one_machine import run_program

ONES = ((1, 1), (1, 1))
# size, window, strides, padding, groups, inputs, outputs
GEOMETRIES = {
    "3x3": ((6, 7), (3, 3), (1, 1), "SAME", 1, 4, 5),
    "3x3 strided": ((8, 6), (3, 3), (2, 2), ONES, 1, 4, 5),
    "3x3 strided, padded after": ((8, 8), (3, 3), (2, 2), ((0, 1), (0, 1)), 1, 4, 5),
    "4x4 strided": ((8, 8), (4, 4), (2, 2), ONES, 1, 3, 5),
    "with pixels that no window sees": ((10, 9), (3, 3), (3, 3), "VALID", 1, 3, 2),
    "1x1": ((6, 6), (1, 1), (1, 1), "SAME", 1, 4, 5),
    "1x1 strided": ((8, 7), (1, 1), (2, 2), "VALID", 1, 4, 5),
    "depthwise": ((7, 6), (5, 3), (1, 1), "SAME", 6, 6, 6),
    "depthwise strided": ((6, 6), (3, 3), (2, 2), "SAME", 6, 6, 6),
    "grouped": ((6, 6), (3, 3), (1, 1), "SAME", 2, 4, 6),
}
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


def by_lax(h, kernel, strides, padding, groups):
    return jax.lax.conv_general_dilated(
        h, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def draw(*shape, dtype=jnp.float64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def operands(geometry, dtype=jnp.float64):
    size, window, *_, groups, inputs, outputs = geometry
    return draw(3, *size, inputs, dtype=dtype), draw(*window, inputs // groups, outputs, dtype=dtype, seed=1)


def assert_same(geometry, function, rtol=1e-12):
    """Compares what a compiled function makes of both convolutions."""
    *_, strides, padding, groups, _, _ = geometry
    for_each = [
        lambda h, kernel, conv=conv: conv(h, kernel, strides, padding, groups) for conv in (convolve, by_lax)
    ]
    ours, theirs = (jax.jit(lambda conv=conv: function(conv))() for conv in for_each)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(b))))


def cube(conv):
    return lambda h, kernel: jnp.sum(conv(h, kernel) ** 3)


@every_geometry
def test_output_gradients_and_forward_mode(x64, geometry):
    h, kernel = operands(geometry)

    def all_of_them(conv):
        out, pull = jax.vjp(conv, h, kernel)
        return out, pull(jnp.sin(out)), jax.jvp(conv, (h, kernel), (2.0 * h + 1.0, kernel**2))

    assert_same(geometry, all_of_them)


@every_geometry
def test_derivatives_of_derivatives(x64, geometry):
    h, kernel = operands(geometry)

    def all_of_them(conv):
        gradient = jax.grad(cube(conv), (0, 1))
        of_kernel = lambda kernel: jnp.sum(gradient(h, kernel)[1] ** 2)
        return jax.jvp(gradient, (h, kernel), (h**2, kernel**2)), jax.grad(of_kernel)(kernel)

    assert_same(geometry, all_of_them)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (3, 2)])
@pytest.mark.parametrize("name", ["3x3 strided", "1x1", "depthwise"])
def test_batched(x64, name, axes):
    geometry = GEOMETRIES[name]
    stacked = [
        x if axis is None else jnp.stack([x, x**2], axis)
        for x, axis in zip(operands(geometry), axes, strict=True)
    ]
    assert_same(geometry, lambda conv: jax.vmap(conv, axes)(*stacked))
    assert_same(geometry, lambda conv: jax.vmap(jax.grad(cube(conv), (0, 1)), axes)(*stacked))


@pytest.mark.parametrize("name", ["3x3", "depthwise"])
def test_half_precision(name):
    """Depthwise sums of bfloat16 are float32, and rounded once; others are as `lax` has them."""
    geometry = GEOMETRIES[name]
    h, kernel = operands(geometry, jnp.bfloat16)
    if name == "depthwise":
        wide = convolve(h.astype(jnp.float32), kernel.astype(jnp.float32), groups=6)
        assert jnp.array_equal(convolve(h, kernel, groups=6), wide.astype(jnp.bfloat16))
    assert_same(geometry, lambda conv: (conv(h, kernel), jax.grad(cube(conv), (0, 1))(h, kernel)), rtol=2e-2)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_convolve_by_lax(platform):
    h, kernel = operands(GEOMETRIES["depthwise"], jnp.float32)
    gradient = jax.jit(jax.grad(lambda h, kernel: jnp.sum(convolve(h, kernel, groups=6) ** 2), (0, 1)))
    program = gradient.trace(h, kernel).lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == 3
    assert "stablehlo.while" not in program


@pytest.mark.parametrize("precision", [None, "highest"])
def test_precision_is_that_of_the_call(precision):
    """The convolution is lowered later, when the context of the call has ended."""
    h, kernel = operands(GEOMETRIES["3x3"], jnp.float32)

    def gradient(h, kernel):
        with jax.default_matmul_precision(precision):
            return jax.grad(cube(convolve), (0, 1))(h, kernel)

    program = jax.jit(gradient).trace(h, kernel).lower(lowering_platforms=("tpu",)).as_text()
    highest = [line.count("HIGHEST") for line in program.splitlines() if "stablehlo.convolution" in line]
    assert highest == [0 if precision is None else 2] * 3


def test_gradients_in_a_scan_are_standard_convolutions():
    """XLA's CPU compiler reorders axes outside of loops only, and is slow with any other order."""
    h, kernels = draw(2, 6, 6, 4, dtype=jnp.float32), draw(3, 3, 3, 4, 4, dtype=jnp.float32)

    def loss(h, kernels):
        return jnp.sum(jax.lax.scan(lambda h, kernel: (jnp.sin(convolve(h, kernel)), None), h, kernels)[0])

    program = jax.jit(jax.grad(loss, (0, 1))).lower(h, kernels).as_text("hlo")
    layouts = [
        line.split("dim_labels=")[1].split(",")[0] for line in program.splitlines() if "convolution(" in line
    ]
    assert layouts == ["b01f_01io->b01f"] * 3


def test_the_convolution_of_flax(x64):
    """`Conv` has the parameters of `nn.Conv`, and its output."""
    from flax import linen as nn

    h = draw(2, 6, 6, 3)
    fields = dict(features=4, kernel_size=(3, 3), strides=2, padding=1)
    ours, theirs = Conv(**fields), nn.Conv(**fields)
    params = ours.init(jax.random.key(0), h)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, params, theirs.init(jax.random.key(0), h)))
    np.testing.assert_allclose(ours.apply(params, h), theirs.apply(params, h), rtol=1e-12)
    with pytest.raises(ValueError, match="dilation"):
        Conv(4, (3, 3), kernel_dilation=2).init(jax.random.key(0), h)


@every_geometry
def test_all_three_take_the_same_multiply_adds(geometry):
    h, kernel = operands(geometry, jnp.float32)
    *_, strides, padding, groups, _, _ = geometry
    conv = lambda h, kernel: convolve(h, kernel, strides, padding, groups)
    program = jax.make_jaxpr(jax.grad(cube(conv), (0, 1)))(h, kernel).jaxpr
    counts = {
        equation.primitive: multiply_adds(
            equation.primitive, *(x.aval for x in equation.invars), **equation.params
        )
        for equation in program.eqns
        if equation.primitive in (OUTPUT, MAPS, KERNEL)
    }
    out = conv(h, kernel)
    assert counts == dict.fromkeys((OUTPUT, MAPS, KERNEL), out.size * kernel.size // kernel.shape[3])


def test_kernels_that_do_not_fit_are_refused():
    h, kernel = operands(GEOMETRIES["3x3"], jnp.float32)
    with pytest.raises(ValueError, match="does not fit maps of 4 channels"):
        convolve(h, kernel[:, :, :3])
    with pytest.raises(ValueError, match="bfloat16"):
        convolve(h, kernel.astype(jnp.bfloat16))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from lsgm_jax.nn.convolution import convolve
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
draw = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
for kernel, groups in ((draw(5, 5, 1, 4), 4), (draw(3, 3, 4, 6), 1), (draw(1, 1, 4, 6), 1)):
    gradient = jax.jit(jax.grad(lambda h, kernel: jnp.sum(convolve(h, kernel, groups=groups) ** 2), (0, 1)))
    h = draw(8, 6, 6, 4)
    split = jax.device_put(h, NamedSharding(mesh, PartitionSpec("data")))
    for one, four in zip(gradient(h, kernel), gradient(split, kernel)):
        np.testing.assert_allclose(one, four, rtol=1e-5, atol=1e-3)
    print(len(gradient(split, kernel)[0].sharding.device_set))
"""


def test_a_batch_split_over_devices():
    (done,) = run_program(SHARDED, processes=1, devices=4, join="")
    assert (done.status, done.out.split()) == (0, ["4"] * 3), done.err
