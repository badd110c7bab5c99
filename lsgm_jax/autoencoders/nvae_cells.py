"""The layers of NVAE: weight-normalised convolutions, batch normalisation and the residual cell.

All convolutions pad symmetrically, even with stride 2, unlike "SAME". Modules with running statistics take `train`: if
true, they normalise by the statistics of the batch, otherwise by the running statistics.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.arrays import at_least_float32, mean_over_devices, parts_of_batch
from lsgm_jax.nn.convolution import convolve
from lsgm_jax.nn.layers import FAN_IN_UNIFORM, Block, Embedding, Maps, Resized, upsample

Kernel = Float[Array, "rows columns inputs outputs"]
Mask = Float[np.ndarray, "rows columns inputs outputs"]
PerChannel = Float[Array, "channels"]
Resampling = Literal["none", "down", "up"]

BRANCH_SCALE = 0.1
NORM_EPS = 1e-5
NORM_MOMENTUM = 0.05


def kernel_norms(kernel: Kernel) -> Float[Array, "outputs"]:
    """Returns the Euclidean norm of the weights of each output channel."""
    return jnp.sqrt(jnp.sum(kernel**2, axis=(0, 1, 2)))


def normalised(kernel: Kernel, log_norm: Float[Array, "outputs"]) -> Kernel:
    """Rescales the kernel so that the norm of output channel i is exp(`log_norm`[i])."""
    return kernel * (jnp.exp(log_norm) / (kernel_norms(kernel) + 1e-5))


class Conv(nn.Module):
    """Symmetrically padded convolution, [batch, h, w, c] -> [batch, h', w', channels]; optional weight normalisation.

    A mask, if given, multiplies the kernel before normalisation. The effective kernel is sown into the collection
    "kernels", where regularisation penalties find it.

    Attributes:
        channels: output channels.
        size: odd height and width of the kernel.
        stride: stride along both axes.
        depthwise: whether each channel is convolved by itself; `channels` is then that of the input.
        use_bias: whether to add a bias.
        weight_norm: whether to learn the logarithm of the norm of each output channel.
    """

    channels: int
    size: int
    stride: int = 1
    depthwise: bool = False
    use_bias: bool = True
    weight_norm: bool = True

    @nn.compact
    def __call__(self, h: Maps, mask: Mask | None = None) -> Resized:
        shape = (self.size, self.size, 1 if self.depthwise else h.shape[-1], self.channels)
        stored = kernel = self.param("kernel", FAN_IN_UNIFORM, shape, jnp.float32)
        if mask is not None:
            kernel = kernel * mask.astype(kernel.dtype)
        if self.weight_norm:
            start = lambda _: jnp.log(kernel_norms(stored) + 0.01)
            kernel = normalised(kernel, self.param("log_norm", start))
        if not self.is_initializing():
            self.sow("kernels", "effective", kernel, init_fn=lambda: kernel, reduce_fn=lambda _, value: value)
        bias = None
        if self.use_bias:
            bias = self.param("bias", _uniform_bias(shape), (self.channels,), jnp.float32)
        pad, groups = self.size // 2, h.shape[-1] if self.depthwise else 1
        strides, padding = (self.stride, self.stride), ((pad, pad), (pad, pad))
        h = convolve(h, kernel.astype(h.dtype), strides, padding, groups)
        return h if bias is None else h + bias.astype(h.dtype)


def _uniform_bias(kernel_shape: tuple[int, ...]) -> nn.initializers.Initializer:
    bound = float(np.prod(kernel_shape[:-1])) ** -0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class BatchNorm(nn.Module):
    """Batch normalisation of NVAE, [batch, h, w, c] -> the same shape; `mean` and `var` are in "batch_stats".

    The batch is normalised by its biased variance, and the running variance averages unbiased ones; `nn.BatchNorm`
    would use the biased variance for both. Statistics are float32, over the global batch of all devices. With `train`,
    the running statistics are updated only if "batch_stats" is mutable, so that sampling can use batch statistics too.

    Attributes:
        momentum: weight of the batch in the update of the running statistics.
        scale_init: initialiser of the scales.
    """

    momentum: float = NORM_MOMENTUM
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, h: Maps, *, train: bool) -> Maps:
        dtype, h, channels = h.dtype, at_least_float32(h), h.shape[-1:]
        scale = self.param("scale", self.scale_init, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            mean, var = _moments(h, running_mean.value)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                count = h.size // h.shape[-1] * parts_of_batch()
                running_mean.value = self._moved(running_mean.value, mean)
                running_var.value = self._moved(running_var.value, var * (count / max(count - 1, 1)))
        return ((h - mean) * (jax.lax.rsqrt(var + NORM_EPS) * scale) + bias).astype(dtype)

    def _moved(self, running: PerChannel, value: PerChannel) -> PerChannel:
        return (1.0 - self.momentum) * running + self.momentum * jax.lax.stop_gradient(value)


def _moments(h: Maps, near: PerChannel) -> tuple[PerChannel, PerChannel]:
    """Returns mean and biased variance of each channel over the global batch, in one reduction over devices.

    The variance is the mean of those within images plus that of their means. Only the latter is a difference of sums,
    which do not wait for each other: forward and backward, devices communicate once instead of twice. The result does
    not depend on `near`, but the closer it is to the mean, the less cancels.

    Args:
        near: estimate of the mean that all devices have.
    """
    near = jax.lax.stop_gradient(near)
    means = jnp.mean(h, axis=(1, 2))
    within = jnp.mean((h - means[:, None, None]) ** 2, axis=(1, 2))
    first, second, within = mean_over_devices(
        (jnp.mean(means - near, axis=0), jnp.mean((means - near) ** 2, axis=0), jnp.mean(within, axis=0))
    )
    return near + first, within + jnp.maximum(second - first**2, 0.0)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate computed from the means of all channels, [batch, h, w, c] -> the same shape."""

    @nn.compact
    def __call__(self, h: Maps) -> Maps:
        gate: Embedding = jnp.mean(h, axis=(1, 2))
        gate = nn.relu(nn.Dense(max(h.shape[-1] // 16, 4), dtype=h.dtype, name="squeeze")(gate))
        gate = nn.sigmoid(nn.Dense(h.shape[-1], dtype=h.dtype, name="excite")(gate))
        return h * gate[:, None, None, :]


class SwishBranch(nn.Module):
    """Twice batch normalisation, swish and a 3x3 convolution, [batch, h, w, c] -> [batch, h', w', channels].

    Attributes:
        channels: output channels.
        resampling: "down" for stride 2 in the first convolution, "up" for nearest-neighbour doubling before it.
    """

    channels: int
    resampling: Resampling

    @nn.compact
    def __call__(self, h: Maps, *, train: bool) -> Resized:
        h = nn.swish(BatchNorm(name="norm_0")(h, train=train))
        h = upsample(h) if self.resampling == "up" else h
        h = Conv(self.channels, 3, stride=2 if self.resampling == "down" else 1, name="conv_0")(h)
        return Conv(self.channels, 3, name="conv_1")(nn.swish(BatchNorm(name="norm_1")(h, train=train)))


class BottleneckBranch(nn.Module):
    """Inverted bottleneck, [batch, h, w, c] -> [batch, h', w', channels].

    It expands the channels, applies a depthwise 5x5 convolution and projects to the output channels.

    Attributes:
        channels: output channels.
        resampling: "none", or "up" for nearest-neighbour doubling; "down" raises ValueError.
        expansion: factor of the input channels inside.
    """

    channels: int
    resampling: Resampling
    expansion: int

    @nn.compact
    def __call__(self, h: Maps, *, train: bool) -> Resized:
        if self.resampling == "down":
            raise ValueError(
                "an inverted bottleneck does not halve the resolution: NVAE has it in decoders only"
            )
        inner = self.expansion * h.shape[-1]
        h = upsample(h) if self.resampling == "up" else h
        h = BatchNorm(name="norm_in")(h, train=train)
        h = Conv(inner, 1, use_bias=False, weight_norm=False, name="expand")(h)
        h = nn.swish(BatchNorm(name="norm_0")(h, train=train))
        h = Conv(inner, 5, depthwise=True, use_bias=False, weight_norm=False, name="depthwise")(h)
        h = nn.swish(BatchNorm(name="norm_1")(h, train=train))
        h = Conv(self.channels, 1, use_bias=False, weight_norm=False, name="project")(h)
        return BatchNorm(name="norm_out")(h, train=train)


class DownSkip(nn.Module):
    """Halves the resolution of a shortcut, [batch, h, w, c] -> [batch, h / 2, w / 2, channels].

    Each of the four pixels of a 2x2 block is mapped to a quarter of the output channels.
    """

    channels: int

    @nn.compact
    def __call__(self, h: Maps) -> Resized:
        h = nn.swish(h)
        quarter = self.channels // 4
        widths = (quarter, quarter, quarter, self.channels - 3 * quarter)
        corners = (h, h[:, 1:, 1:], h[:, :, 1:], h[:, 1:, :])
        convs = [Conv(width, 1, stride=2, name=f"corner_{i}") for i, width in enumerate(widths)]
        return jnp.concatenate([conv(corner) for conv, corner in zip(convs, corners, strict=True)], axis=-1)


class UpSkip(nn.Module):
    """Bilinear upsampling and a 1x1 convolution of a shortcut, [batch, h, w, c] -> [batch, 2 h, 2 w, channels]."""

    channels: int

    @nn.compact
    def __call__(self, h: Maps) -> Resized:
        return Conv(self.channels, 1, use_bias=False, name="conv")(double_bilinear(double_bilinear(h, 1), 2))


def double_bilinear(h: Maps, axis: int) -> Resized:
    """Doubles one axis by linear interpolation with aligned corners: the outermost points keep their positions.

    For n points, output 2k lies k / (2n - 1) before input k, and output 2k + 1 lies (n - 1 - k) / (2n - 1) after it.
    """
    count = h.shape[axis]
    first, inner_first = jax.lax.slice_in_dim(h, 0, 1, axis=axis), jax.lax.slice_in_dim(h, 1, None, axis=axis)
    last, inner_last = jax.lax.slice_in_dim(h, -1, None, axis=axis), jax.lax.slice_in_dim(h, 0, -1, axis=axis)
    before, after = jnp.concatenate([first, inner_last], axis), jnp.concatenate([inner_first, last], axis)
    shift = np.expand_dims(np.arange(count) / (2 * count - 1), [a for a in range(h.ndim) if a != axis])
    shift = jnp.asarray(shift, h.dtype)
    even, odd = h + shift * (before - h), h + jnp.flip(shift, axis) * (after - h)
    shape = (*h.shape[:axis], 2 * count, *h.shape[axis + 1 :])
    return jnp.stack([even, odd], axis + 1).reshape(shape)


class Cell(Block):
    """The residual cell skip(h) + 0.1 branch(h), [batch, h, w, c] -> [batch, h', w', channels].

    Attributes:
        channels: output channels.
        resampling: "down" halves, "up" doubles height and width.
        expansion: expansion of the inverted bottleneck; 0 selects the BN-swish branch.
        use_se: whether the branch ends in channel gates (`SqueezeExcite`).
    """

    channels: int
    resampling: Resampling = "none"
    expansion: int = 0
    use_se: bool = True

    @nn.compact
    def __call__(self, h: Maps, *, train: bool) -> Resized:
        if self.expansion:
            branch = BottleneckBranch(self.channels, self.resampling, self.expansion, name="branch")
        else:
            branch = SwishBranch(self.channels, self.resampling, name="branch")
        change = branch(h, train=train)
        if self.use_se:
            change = SqueezeExcite(name="se")(change)
        if self.resampling == "down":
            h = DownSkip(self.channels, name="skip")(h)
        elif self.resampling == "up":
            h = UpSkip(self.channels, name="skip")(h)
        return h + BRANCH_SCALE * change
