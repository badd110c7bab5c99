"""How a convolution and its two gradients are computed: by `jax.lax`, and on CPU otherwise where XLA is slow.

On CPU (docs/speed.md):

- A depthwise convolution is a sum of shifted maps, and the gradient of its kernel is a loop over pixels: XLA takes 10
  to 150 times as long.
- The gradient of a 1 x 1 kernel is a matrix product: XLA takes three times as long for the convolution.
- Gradients are stated as convolutions in the standard order of axes. XLA brings others into it outside of loops only:
  in the body of a scan they would take 8 to 70 times as long.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import at_least_float32

Maps = Float[Array, "batch height width channels"]
Resized = Float[Array, "batch new_height new_width new_channels"]
Kernel = Float[Array, "rows columns inputs outputs"]
Pair = tuple[int, int]
LAYOUT = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """What a convolution is beside its operands.

    Attributes:
        size: height and width of the maps.
        window: height and width of the kernel.
        strides: along height and width.
        padding: rows before and after, columns before and after.
        groups: groups of channels that are convolved separately.
        precision: of the products, as `jax.default_matmul_precision` had it at the call.
    """

    size: Pair
    window: Pair
    strides: Pair
    padding: tuple[Pair, Pair]
    groups: int
    precision: str | None

    def output_size(self) -> Pair:
        """Returns height and width of the output."""
        sizes = zip(self.size, self.window, self.strides, self.padding, strict=True)
        height, width = ((n + sum(pad) - window) // stride + 1 for n, window, stride, pad in sizes)
        return height, width

    def spread(self) -> list[int]:
        """Returns height and width that the output covers with `stride - 1` zeros between its pixels."""
        return [(n - 1) * stride + 1 for n, stride in zip(self.output_size(), self.strides, strict=True)]

    def is_depthwise(self, kernel_inputs: int, outputs: int) -> bool:
        """Returns whether each channel is convolved by itself, at stride 1, to maps of the same size."""
        alone = kernel_inputs == 1 and self.groups == outputs > 1
        return alone and self.strides == (1, 1) and self.output_size() == self.size


# By `jax.lax`, on all platforms.


def output_by_lax(h: Maps, kernel: Kernel, *, geometry: Geometry) -> Resized:
    """Returns the output."""
    return jax.lax.conv_general_dilated(
        h,
        kernel,
        geometry.strides,
        geometry.padding,
        dimension_numbers=LAYOUT,
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def maps_by_lax(g: Resized, kernel: Kernel, *, geometry: Geometry) -> Maps:
    """Returns the gradient of the maps, given that of the output."""
    like = jax.ShapeDtypeStruct(shape_of_maps(g, kernel, geometry), g.dtype)
    return jax.linear_transpose(lambda h: output_by_lax(h, kernel, geometry=geometry), like)(g)[0]


def kernel_by_lax(h: Maps, g: Resized, *, geometry: Geometry) -> Kernel:
    """Returns the gradient of the kernel, given that of the output."""
    like = jax.ShapeDtypeStruct(shape_of_kernel(h, g, geometry), g.dtype)
    return jax.linear_transpose(lambda kernel: output_by_lax(h, kernel, geometry=geometry), like)(g)[0]


def shape_of_output(h: Any, kernel: Any, geometry: Geometry) -> tuple[int, ...]:
    """Returns the shape of the output."""
    return h.shape[0], *geometry.output_size(), kernel.shape[3]


def shape_of_maps(g: Any, kernel: Any, geometry: Geometry) -> tuple[int, ...]:
    """Returns the shape of the maps, given an array like the output."""
    return g.shape[0], *geometry.size, kernel.shape[2] * geometry.groups


def shape_of_kernel(h: Any, g: Any, geometry: Geometry) -> tuple[int, ...]:
    """Returns the shape of the kernel, given an array like the output."""
    return *geometry.window, h.shape[3] // geometry.groups, g.shape[3]


# On CPU.


def output_on_cpu(h: Maps, kernel: Kernel, *, geometry: Geometry) -> Resized:
    """Returns the output."""
    if not geometry.is_depthwise(*kernel.shape[2:]):
        return output_by_lax(h, kernel, geometry=geometry)
    height, width = geometry.size
    rows, columns = geometry.window
    padded, taps = at_least_float32(_pad(h, geometry)), at_least_float32(kernel)
    # XLA fuses the sum of shifted maps into one loop.
    shifted = (
        padded[:, i : i + height, j : j + width] * taps[i, j, 0] for i in range(rows) for j in range(columns)
    )
    return functools.reduce(jnp.add, shifted).astype(h.dtype)


def maps_on_cpu(g: Resized, kernel: Kernel, *, geometry: Geometry) -> Maps:
    """Returns the gradient of the maps, given that of the output."""
    mirrored = jnp.flip(kernel, (0, 1))
    before = [window - 1 - pad for window, (pad, _) in zip(geometry.window, geometry.padding, strict=True)]
    padding = tuple(
        (first, size + window - 1 - spread - first)
        for first, size, window, spread in zip(
            before, geometry.size, geometry.window, geometry.spread(), strict=True
        )
    )
    if geometry.is_depthwise(*kernel.shape[2:]):
        return output_on_cpu(g, mirrored, geometry=geometry._replace(padding=padding))
    if geometry.groups > 1:
        return maps_by_lax(g, kernel, geometry=geometry)
    return jax.lax.conv_general_dilated(
        g,
        mirrored.swapaxes(2, 3),
        (1, 1),
        padding,
        lhs_dilation=geometry.strides,
        dimension_numbers=LAYOUT,
        precision=geometry.precision,
    )


def kernel_on_cpu(h: Maps, g: Resized, *, geometry: Geometry) -> Kernel:
    """Returns the gradient of the kernel, given that of the output."""
    if geometry.is_depthwise(h.shape[3] // geometry.groups, g.shape[3]):
        return _depthwise_kernel_on_cpu(h, g, geometry)
    if geometry.groups > 1:
        return kernel_by_lax(h, g, geometry=geometry)
    if geometry.window == (1, 1) and geometry.padding == ((0, 0), (0, 0)):
        seen = h[:, :: geometry.strides[0], :: geometry.strides[1]]
        rows, changes = seen.reshape(-1, seen.shape[-1]), g.reshape(-1, g.shape[-1])
        return jnp.matmul(rows.T, changes, precision=geometry.precision)[None, None]
    padding = [
        (before, window - 1 + spread - size - before)
        for (before, _), window, spread, size in zip(
            geometry.padding, geometry.window, geometry.spread(), geometry.size, strict=True
        )
    ]
    # The batch is summed, so it takes the place of the channels.
    summed = jax.lax.conv_general_dilated(
        h.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        rhs_dilation=geometry.strides,
        dimension_numbers=LAYOUT,
        precision=geometry.precision,
    )
    return summed.transpose(1, 2, 0, 3)


def _depthwise_kernel_on_cpu(h: Maps, g: Resized, geometry: Geometry) -> Kernel:
    """Adds window times output gradient over all pixels, image by image: the sum of an image stays in the cache."""
    batch, height, width, channels = h.shape
    padded, window = _pad(h, geometry), (*geometry.window, channels)
    start = at_least_float32(jnp.zeros(window, h.dtype))

    def add_image(b: Array, total: Array) -> Array:
        def add_pixel(pixel: Array, total: Array) -> Array:
            y, x = pixel // width, pixel % width
            around = jax.lax.dynamic_slice(padded, (b, y, x, 0), (1, *window))[0]
            change = jax.lax.dynamic_slice(g, (b, y, x, 0), (1, 1, 1, channels))[0]
            return total + at_least_float32(around) * at_least_float32(change)

        return total + jax.lax.fori_loop(0, height * width, add_pixel, start)

    return jax.lax.fori_loop(0, batch, add_image, start)[:, :, None].astype(h.dtype)


def _pad(h: Maps, geometry: Geometry) -> Array:
    return jnp.pad(h, ((0, 0), *geometry.padding, (0, 0)))
