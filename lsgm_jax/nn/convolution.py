"""Convolution of maps, whose derivatives are as fast as their sums on every platform, also in loops.

    form(h, k, g) = sum over b, y, x, i, j, c, o of  padded h[b, s y + i, s x + j, c]  k[i, j, c, o]  g[b, y, x, o]

A convolution is this trilinear form. The output, the gradient of the maps and that of the kernel are its derivatives by
g, h and k. Each is linear in two arguments, and its own derivatives are the other two. JAX therefore sees three
bilinear primitives: derivatives of any order and mode follow from them, and each platform computes them its own way
(`nn/convolution_lowerings.py`).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray  # pyright: ignore[reportAttributeAccessIssue]
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from lsgm_jax.nn.convolution_lowerings import (
    Geometry,
    Kernel,
    Maps,
    Resized,
    kernel_by_lax,
    kernel_on_cpu,
    maps_by_lax,
    maps_on_cpu,
    output_by_lax,
    output_on_cpu,
    shape_of_kernel,
    shape_of_maps,
    shape_of_output,
)

Operands = tuple[Array, Array]
Axes = tuple[int | None, int | None]


def convolve(
    h: Maps,
    kernel: Kernel,
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[Sequence[int]] = "SAME",
    groups: int = 1,
) -> Resized:
    """Convolves maps with a kernel, as `jax.lax.conv_general_dilated` without dilation.

    Args:
        h: maps.
        kernel: [rows, columns, channels / groups, outputs], in the dtype of the maps.
        strides: along height and width.
        padding: zeros before and after height and width, "SAME" or "VALID".
        groups: groups of channels that are convolved separately.

    Returns:
        Maps of the resulting size with as many channels as the kernel has outputs.

    Raises:
        ValueError: if kernel and maps do not fit.
    """
    if kernel.shape[2] * groups != h.shape[-1] or kernel.shape[3] % groups:
        raise ValueError(
            f"a kernel of shape {list(kernel.shape)} in {groups} groups does not fit maps of {h.shape[-1]} channels"
        )
    if kernel.dtype != h.dtype:
        raise ValueError(f"maps are {h.dtype} and their kernel is {kernel.dtype}: cast one of them")
    size, window = _pair(h.shape[1:3]), _pair(kernel.shape[:2])
    pads = jax.lax.padtype_to_pads(size, window, strides, padding) if isinstance(padding, str) else padding
    before_and_after = _pair([_pair(sides) for sides in pads])
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    geometry = Geometry(size, window, _pair(strides), before_and_after, groups, precision)
    return OUTPUT.bind(h, kernel, geometry=geometry)


def _pair(values: Sequence[Any]) -> tuple[Any, Any]:
    along_height, along_width = values
    return along_height, along_width


def flax_convolution(
    h: Maps,
    kernel: Kernel,
    strides: Sequence[int],
    padding: str | Sequence[Sequence[int]],
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: Any,
    feature_group_count: int,
    precision: None,
) -> Resized:
    """Convolves with `convolve`, as the argument `conv_general_dilated` of `nn.Conv`.

    Raises:
        ValueError: for dilation, or a precision of its own.
    """
    if {*lhs_dilation, *rhs_dilation} != {1} or precision is not None:
        raise ValueError("convolutions have no dilation here, and take jax.default_matmul_precision")
    return convolve(h, kernel, strides, padding, feature_group_count)


OUTPUT = Primitive("conv_output")  # (h, kernel) -> output
MAPS = Primitive("conv_maps_gradient")  # (g, kernel) -> like h
KERNEL = Primitive("conv_kernel_gradient")  # (h, g) -> like kernel


def multiply_adds(primitive: Primitive, x: Any, y: Any, geometry: Geometry) -> int:
    """Returns the multiply-adds of one of the three, padding included, from the shapes of its operands."""
    if primitive is KERNEL:
        inputs, outputs = x.shape[3] // geometry.groups, y.shape[3]
    else:
        inputs, outputs = y.shape[2:]
    return math.prod((x.shape[0], *geometry.output_size(), *geometry.window, inputs, outputs))


# Batching: with one kernel, samples of all instances are one batch. Kernels of their own are rare, and left to `lax`.


def _batched(primitive: Primitive, by_lax: Callable[..., Array]) -> Callable[..., tuple[Array, int]]:
    def batch(operands: Operands, axes: Axes, *, geometry: Geometry) -> tuple[Array, int]:
        (maps, kernel), (axis, kernel_axis) = operands, axes
        if primitive is KERNEL or kernel_axis is not None or axis is None:
            return jax.vmap(functools.partial(by_lax, geometry=geometry), axes)(*operands), 0
        maps = jnp.moveaxis(maps, axis, 0)
        out = primitive.bind(maps.reshape(-1, *maps.shape[2:]), kernel, geometry=geometry)
        return out.reshape(*maps.shape[:2], *out.shape[1:]), 0

    return batch


# Transposes: JAX passes the cotangent, both operands, and a placeholder for the one whose gradient is sought.


def _gradient(primitive: Primitive, first: str, second: str) -> Callable[..., Array]:
    """Returns the transpose that applies `primitive` to two of ct, x and y."""

    def transpose(ct: Array, x: Any, y: Any, *, geometry: Geometry) -> Array:
        known = {"ct": ct, "x": x, "y": y}
        return primitive.bind(known[first], known[second], geometry=geometry)

    return transpose


TRANSPOSES = {
    OUTPUT: (_gradient(MAPS, "ct", "y"), _gradient(KERNEL, "x", "ct")),
    MAPS: (_gradient(OUTPUT, "ct", "y"), _gradient(KERNEL, "ct", "x")),
    KERNEL: (_gradient(MAPS, "y", "ct"), _gradient(OUTPUT, "x", "ct")),
}
VERSIONS = {
    OUTPUT: (shape_of_output, output_by_lax, output_on_cpu),
    MAPS: (shape_of_maps, maps_by_lax, maps_on_cpu),
    KERNEL: (shape_of_kernel, kernel_by_lax, kernel_on_cpu),
}


def _register(primitive: Primitive, shape_of: Callable[..., Any], by_lax: Any, on_cpu: Any) -> None:
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="geometry"))
    primitive.def_abstract_eval(lambda x, y, *, geometry: ShapedArray(shape_of(x, y, geometry), x.dtype))
    ad.defbilinear(primitive, *TRANSPOSES[primitive])
    batching.primitive_batchers[primitive] = _batched(primitive, by_lax)
    mlir.register_lowering(primitive, mlir.lower_fun(by_lax, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")


for _primitive, _versions in VERSIONS.items():
    _register(_primitive, *_versions)
