"""What NCSN++ has beside the shared layers: FIR resampling, Fourier features of time, a pyramid of the input.

FIR resampling convolves with the outer product of a short kernel with itself, [1, 3, 3, 1] as published, scaled so
that constants stay what they are. Doubling puts zeros between pixels first; halving keeps every second pixel after.
"""

from typing import cast

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from lsgm_jax.arrays import Times
from lsgm_jax.layers import Embedding, Maps, Resized

Kernel = tuple[float, ...]


def scaled_init(scale: float) -> nn.initializers.Initializer:
    """Uniform with variance `scale` over the mean of both fans; at scale 0 almost, but not exactly, zero."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def fir_upsample(h: Maps, kernel: Kernel) -> Resized:
    """Doubling: the gaps filled by `kernel`."""
    total = len(kernel) - 2
    before, after = (total + 1) // 2 + 1, total // 2
    # XLA puts zeros between pixels only; one more belongs behind the last.
    return _depthwise(h, kernel, gain=4.0, padding=(before, after + 1), dilation=2)


def fir_downsample(h: Maps, kernel: Kernel) -> Resized:
    """Halving: every second pixel of the maps smoothed by `kernel`."""
    total = len(kernel) - 2
    return _depthwise(h, kernel, padding=((total + 1) // 2, total // 2), stride=2)


def _depthwise(
    h: Maps,
    kernel: Kernel,
    *,
    padding: tuple[int, int],
    gain: float = 1.0,
    stride: int = 1,
    dilation: int = 1,
) -> Resized:
    channels = h.shape[-1]
    taps = np.flip(np.outer(kernel, kernel))  # XLA correlates; a filter convolves
    taps = jnp.asarray(gain * taps / taps.sum(), h.dtype)
    return lax.conv_general_dilated(
        h,
        jnp.broadcast_to(taps[:, :, None, None], (*taps.shape, 1, channels)),
        window_strides=(stride, stride),
        padding=(padding, padding),
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


class PyramidDown(nn.Module):
    """One step of the input pyramid: `kernel`, then a 3 x 3 convolution that keeps every second pixel."""

    channels: int
    kernel: Kernel
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, pyramid: Maps) -> Resized:
        total = len(self.kernel)
        smooth = _depthwise(pyramid, self.kernel, padding=((total + 1) // 2, total // 2))
        conv = nn.Conv(self.channels, (3, 3), strides=2, padding="VALID", kernel_init=self.kernel_init)
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
