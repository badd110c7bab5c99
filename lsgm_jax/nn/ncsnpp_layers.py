"""What NCSN++ has beside the shared layers: FIR resampling, Fourier features of time, a pyramid of the input.

FIR resampling convolves with the outer product of a short kernel with itself, [1, 3, 3, 1] as published, scaled so
that constants stay what they are. Doubling puts zeros between pixels first; halving keeps every second pixel after.
"""

import functools
from typing import cast

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from lsgm_jax.arrays import Times
from lsgm_jax.nn.layers import Embedding, Maps, Resized

Kernel = tuple[float, ...]


def scaled_init(scale: float) -> nn.initializers.Initializer:
    """Uniform with variance `scale` over the mean of both fans; at scale 0 almost, but not exactly, zero."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def fir_upsample(h: Maps, kernel: Kernel) -> Resized:
    """Doubling: the gaps filled by `kernel`."""
    return _upsample_axis(_upsample_axis(h, kernel, 1), kernel, 2)


def fir_downsample(h: Maps, kernel: Kernel) -> Resized:
    """Halving: every second pixel of the maps smoothed by `kernel`."""
    total = len(kernel) - 2
    return _smooth(h, kernel, padding=((total + 1) // 2, total // 2), stride=2)


def _upsample_axis(h: Maps, kernel: Kernel, axis: int) -> Resized:
    """Even and odd outputs each meet every second tap, so that no zeros have to be put between pixels."""
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
    """Scaled to the sum `gain` and flipped, because a filter convolves and `_correlate` does not."""
    return tuple(gain * tap / sum(kernel) for tap in reversed(kernel))


def _correlate(h: Maps, taps: Kernel, axis: int, padding: tuple[int, int], stride: int = 1) -> Resized:
    """Sum of shifted maps along one axis, which XLA fuses.

    Measured on two CPU cores for maps of shape [4, 16, 16, 128]: 0.17 ms to double and 0.16 ms to halve, where the
    depthwise convolution takes 60 ms and 3 ms.
    """
    h = jnp.pad(h, [padding if index == axis else (0, 0) for index in range(h.ndim)])
    reach = h.shape[axis] - len(taps) + 1
    shifted = (lax.slice_in_dim(h, i, i + reach, stride, axis) for i in range(len(taps)))
    return functools.reduce(jnp.add, (tap * part for tap, part in zip(taps, shifted, strict=True)))


class PyramidDown(nn.Module):
    """One step of the input pyramid: `kernel`, then a 3 x 3 convolution that keeps every second pixel."""

    channels: int
    kernel: Kernel
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, pyramid: Maps) -> Resized:
        total = len(self.kernel)
        smooth = _smooth(pyramid, self.kernel, padding=((total + 1) // 2, total // 2))
        conv = nn.Conv(
            self.channels,
            (3, 3),
            strides=2,
            padding="VALID",
            kernel_init=self.kernel_init,
            dtype=smooth.dtype,
        )
        return conv(smooth)


class FourierFeatures(nn.Module):
    """Sines, then cosines, of log t at fixed random frequencies, of standard deviation `scale` in turns per e-fold.

    The frequencies are in the collection "constants", not among the parameters. Whoever applies the network
    without that collection gets those that `init` puts there, which are the same in every network.
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
