"""Layers of NCSN++ besides the shared ones: FIR resampling, random Fourier features of time, input pyramid.

FIR resampling convolves with the outer product of a short kernel with itself, [1, 3, 3, 1] as published, normalised
so that constant maps are preserved. Upsampling inserts zeros between pixels before the filter; downsampling keeps every
second pixel after it.
"""

import functools
from typing import cast

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from lsgm_jax.arrays import Times
from lsgm_jax.nn.layers import Conv, Embedding, Maps, Resized

Kernel = tuple[float, ...]


def scaled_init(scale: float) -> nn.initializers.Initializer:
    """Returns a uniform initialiser with variance `scale` / mean(fan_in, fan_out); a scale of 0 counts as 1e-10."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def fir_upsample(h: Maps, kernel: Kernel) -> Resized:
    """Doubles height and width: inserts zeros and filters with `kernel`."""
    return _upsample_axis(_upsample_axis(h, kernel, 1), kernel, 2)


def fir_downsample(h: Maps, kernel: Kernel) -> Resized:
    """Halves height and width: filters with `kernel` and keeps every second pixel."""
    total = len(kernel) - 2
    return _smooth(h, kernel, padding=((total + 1) // 2, total // 2), stride=2)


def _upsample_axis(h: Maps, kernel: Kernel, axis: int) -> Resized:
    """Filters even and odd outputs separately with every second tap, which avoids inserting zeros."""
    taps, before = _taps(kernel, gain=2.0), (len(kernel) - 1) // 2 + 1
    phases = []
    for phase in range(2):
        first = (before - phase) % 2
        own, lead = taps[first::2], (before - phase - first) // 2
        phases.append(_correlate(h, own, axis, (lead, len(own) - 1 - lead)))
    shape = list(h.shape)
    shape[axis] *= 2
    return jnp.stack(phases, axis=axis + 1).reshape(shape)


def _smooth(h: Maps, kernel: Kernel, padding: tuple[int, int], stride: int = 1) -> Resized:
    for axis in (1, 2):
        h = _correlate(h, _taps(kernel), axis, padding, stride)
    return h


def _taps(kernel: Kernel, gain: float = 1.0) -> Kernel:
    """Normalises the kernel to the sum `gain` and flips it, as a filter convolves and `_correlate` correlates."""
    return tuple(gain * tap / sum(kernel) for tap in reversed(kernel))


def _correlate(h: Maps, taps: Kernel, axis: int, padding: tuple[int, int], stride: int = 1) -> Resized:
    """Correlates maps with `taps` along one axis, as a sum of shifted maps that XLA fuses.

    Measured on two CPU cores for maps of shape [4, 16, 16, 128]: 0.17 ms to double and 0.16 ms to halve, where the
    depthwise convolution takes 60 ms and 3 ms.
    """
    h = jnp.pad(h, [padding if index == axis else (0, 0) for index in range(h.ndim)])
    reach = h.shape[axis] - len(taps) + 1
    shifted = (lax.slice_in_dim(h, i, i + reach, stride, axis) for i in range(len(taps)))
    return functools.reduce(jnp.add, (tap * part for tap, part in zip(taps, shifted, strict=True)))


class PyramidDown(nn.Module):
    """One level of the input pyramid, [batch, h, w, c] -> [batch, h / 2, w / 2, channels].

    It filters with `kernel` and applies a 3 x 3 convolution with stride 2.

    Attributes:
        channels: output channels.
        kernel: FIR kernel.
        kernel_init: initialiser of the kernel of the convolution.
    """

    channels: int
    kernel: Kernel
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, pyramid: Maps) -> Resized:
        total = len(self.kernel)
        smooth = _smooth(pyramid, self.kernel, padding=((total + 1) // 2, total // 2))
        conv = Conv(
            self.channels,
            (3, 3),
            strides=2,
            padding="VALID",
            kernel_init=self.kernel_init,
            dtype=smooth.dtype,
        )
        return conv(smooth)


class FourierFeatures(nn.Module):
    """Random Fourier features of log t, [batch] -> [batch, 2 frequencies]: sines, then cosines.

    The frequencies are fixed and lie in the collection "constants", not among the parameters. Without that collection
    the module uses the frequencies that `init` would store; they are the same in every network.

    Attributes:
        frequencies: number of frequencies.
        scale: standard deviation of the frequencies, in turns per e-fold of t.
    """

    frequencies: int
    scale: float

    @nn.compact
    def __call__(self, t: Times) -> Embedding:
        angles = 2.0 * jnp.pi * jnp.log(t)[:, None] * self._frequencies()
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def _frequencies(self) -> Float[Array, "frequencies"]:
        def draw() -> Float[Array, "frequencies"]:
            return jnp.asarray(
                self.scale * np.random.default_rng(0).standard_normal(self.frequencies), jnp.float32
            )

        stored = self.is_mutable_collection("constants") or self.has_variable("constants", "frequencies")
        if not stored:
            return draw()
        return cast(Array, self.variable("constants", "frequencies", draw).value)
