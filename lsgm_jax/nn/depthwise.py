"""Depthwise convolution: every channel has a kernel of its own.

    out[b, y, x, c] = sum_ij kernel[i, j, c] padded[b, y + i, x + j, c]

On CPU, XLA takes 10 to 150 times as long for it as the sums need (`docs/speed.md`). So there it is written out: the
output as a sum of shifted maps, the gradient of the kernel as a loop over pixels. Elsewhere it is `lax.conv`.

The output is linear in the maps and in the kernel, and both transposes are operations of the same two kinds. JAX
therefore sees two bilinear primitives: derivatives of any order and mode follow, and the loop is never differentiated.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from lsgm_jax.nn.layers import Maps, at_least_float32

DepthwiseKernel = Float[Array, "rows columns 1 channels"]
Operands = tuple[Array, Array]
Axes = tuple[int | None, int | None]


def depthwise_conv(h: Maps, kernel: Float[Array, "_ _ _ _"]) -> Maps:
    """Convolves each channel with a kernel of its own, with stride 1 and symmetric padding by zeros.

    Args:
        h: maps.
        kernel: [rows, columns, 1, channels], of odd height and width, in the dtype of the maps.

    Returns:
        Maps of the same shape. Sums are at least float32.

    Raises:
        ValueError: if the kernel has another number of channels or dtype, or an even height or width.
    """
    if kernel.shape[2:] != (1, h.shape[-1]) or not all(size % 2 for size in kernel.shape[:2]):
        raise ValueError(
            f"a depthwise kernel of {h.shape[-1]} channels has shape [odd, odd, 1, {h.shape[-1]}], "
            f"got {list(kernel.shape)}"
        )
    if kernel.dtype != h.dtype:
        raise ValueError(f"maps are {h.dtype} and their kernel is {kernel.dtype}: cast one of them")
    return CONVOLVE.bind(h, kernel)


# The output as a function of maps and kernel, and the gradient of the kernel as a function of maps and output gradient.
CONVOLVE = Primitive("depthwise_conv")
CORRELATE = Primitive("depthwise_kernel_gradient")


def _convolve_by_lax(h: Maps, kernel: DepthwiseKernel) -> Maps:
    return jax.lax.conv_general_dilated(
        h,
        kernel,
        window_strides=(1, 1),
        padding=[(size // 2, size // 2) for size in kernel.shape[:2]],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=h.shape[-1],
    )


def _correlate_by_lax(h: Maps, g: Maps, *, window: tuple[int, int]) -> DepthwiseKernel:
    like = jax.ShapeDtypeStruct((*window, 1, h.shape[-1]), h.dtype)
    return jax.linear_transpose(functools.partial(_convolve_by_lax, h), like)(g)[0]


def _convolve_by_shifts(h: Maps, kernel: DepthwiseKernel) -> Maps:
    """Adds one shifted copy of the maps for each entry of the kernel; XLA fuses all into one loop."""
    height, width = h.shape[1:3]
    rows, columns = kernel.shape[:2]
    padded, taps = at_least_float32(_pad(h, rows, columns)), at_least_float32(kernel)
    shifted = (
        padded[:, i : i + height, j : j + width] * taps[i, j, 0] for i in range(rows) for j in range(columns)
    )
    return functools.reduce(jnp.add, shifted).astype(h.dtype)


def _correlate_by_pixels(h: Maps, g: Maps, *, window: tuple[int, int]) -> DepthwiseKernel:
    """Adds window times output gradient over all pixels, image by image: the sum of an image stays in the cache."""
    batch, height, width, channels = h.shape
    padded = _pad(h, *window)
    start = at_least_float32(jnp.zeros((*window, channels), h.dtype))

    def add_image(b: Array, total: Array) -> Array:
        def add_pixel(pixel: Array, total: Array) -> Array:
            y, x = pixel // width, pixel % width
            around = jax.lax.dynamic_slice(padded, (b, y, x, 0), (1, *window, channels))[0]
            change = jax.lax.dynamic_slice(g, (b, y, x, 0), (1, 1, 1, channels))[0]
            return total + at_least_float32(around) * at_least_float32(change)

        return total + jax.lax.fori_loop(0, height * width, add_pixel, start)

    return jax.lax.fori_loop(0, batch, add_image, start)[:, :, None].astype(h.dtype)


def _pad(h: Maps, rows: int, columns: int) -> Float[Array, "batch padded_height padded_width channels"]:
    return jnp.pad(h, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))


def _mirrored(kernel: DepthwiseKernel) -> DepthwiseKernel:
    return jnp.flip(kernel, (0, 1))


# Transposes. JAX passes the cotangent, and a placeholder for the operand that is sought.


def _maps_of_convolve(ct: Maps, _: Any, kernel: DepthwiseKernel) -> Maps:
    return CONVOLVE.bind(ct, _mirrored(kernel))


def _kernel_of_convolve(ct: Maps, h: Maps, kernel: Any) -> DepthwiseKernel:
    return CORRELATE.bind(h, ct, window=kernel.aval.shape[:2])


def _maps_of_correlate(ct: DepthwiseKernel, _: Any, g: Maps, *, window: tuple[int, int]) -> Maps:
    return CONVOLVE.bind(g, _mirrored(ct))


def _gradients_of_correlate(ct: DepthwiseKernel, h: Maps, _: Any, *, window: tuple[int, int]) -> Maps:
    return CONVOLVE.bind(h, ct)


# Batching. Maps of one kernel are a larger batch; kernels of their own are more channels.


def _batch_convolve(operands: Operands, axes: Axes) -> tuple[Array, int]:
    (h, kernel), (h_axis, kernel_axis) = operands, axes
    if kernel_axis is None:
        h = jnp.moveaxis(h, h_axis, 0)
        return CONVOLVE.bind(h.reshape(-1, *h.shape[2:]), kernel).reshape(h.shape), 0
    size = kernel.shape[kernel_axis]
    out = CONVOLVE.bind(_as_channels(h, h_axis, size), _as_channels(kernel, kernel_axis, size))
    return out.reshape(*out.shape[:3], size, -1), 3


def _batch_correlate(operands: Operands, axes: Axes, *, window: tuple[int, int]) -> tuple[Array, int]:
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    h, g = (_as_channels(x, axis, size) for x, axis in zip(operands, axes, strict=True))
    out = CORRELATE.bind(h, g, window=window)
    return out.reshape(*out.shape[:3], size, -1), 3


def _as_channels(x: Array, axis: int | None, size: int) -> Array:
    """Joins the batch axis, of this size, to the channels; repeats arrays without one."""
    if axis is None:
        x, axis = jnp.broadcast_to(x[None], (size, *x.shape)), 0
    x = jnp.moveaxis(x, axis, 3)
    return x.reshape(*x.shape[:3], -1)


CONVOLVE.def_impl(jax.jit(CONVOLVE.bind))
CONVOLVE.def_abstract_eval(lambda h, kernel: h.update())
ad.defbilinear(CONVOLVE, _maps_of_convolve, _kernel_of_convolve)
batching.primitive_batchers[CONVOLVE] = _batch_convolve

CORRELATE.def_impl(jax.jit(CORRELATE.bind, static_argnames="window"))
CORRELATE.def_abstract_eval(lambda h, g, *, window: jax.core.ShapedArray((*window, 1, h.shape[-1]), h.dtype))
ad.defbilinear(CORRELATE, _maps_of_correlate, _gradients_of_correlate)
batching.primitive_batchers[CORRELATE] = _batch_correlate

for primitive, elsewhere, on_cpu in (
    (CONVOLVE, _convolve_by_lax, _convolve_by_shifts),
    (CORRELATE, _correlate_by_lax, _correlate_by_pixels),
):
    mlir.register_lowering(primitive, mlir.lower_fun(elsewhere, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")
