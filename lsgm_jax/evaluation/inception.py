"""InceptionV3 as used for published FIDs: TensorFlow's network of December 2015.

The layers have the names of torchvision's InceptionV3. The pooling differs from torchvision's: average pooling excludes
the padding, and the last block uses max pooling. The features are the 2048 outputs of the global average pooling.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.evaluation.features import Bytes, Features

SIDE = 299  # height and width of the images it was trained on
Maps = Float[Array, "batch height width channels"]
Pooled = Float[Array, "batch height2 width2 channels2"]


class Conv(nn.Module):
    """Convolution, batch normalisation with stored statistics, ReLU.

    Attributes:
        features: output channels.
        kernel: height and width, or one number for both.
        stride: stride 1 pads such that odd kernels preserve height and width; stride 2 does not pad.
        valid: disables the padding of stride 1.
    """

    features: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    valid: bool = False

    @nn.compact
    def __call__(self, h: Maps) -> Pooled:
        kernel = (self.kernel, self.kernel) if isinstance(self.kernel, int) else self.kernel
        pad = [(0, 0) if self.valid or self.stride == 2 else (side // 2, side // 2) for side in kernel]
        h = nn.Conv(
            self.features,
            kernel,
            self.stride,
            padding=pad,
            use_bias=False,
            precision=jax.lax.Precision.HIGHEST,  # the default of accelerators has fewer digits than published FIDs
            name="conv",
        )(h)
        return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(h))


def average(h: Maps) -> Maps:
    """Computes 3 x 3 average pooling of stride 1; windows at the edge exclude the padding."""
    return nn.avg_pool(h, (3, 3), (1, 1), "SAME", count_include_pad=False)


def maximum(h: Maps) -> Maps:
    """Computes 3 x 3 max pooling of stride 1."""
    return nn.max_pool(h, (3, 3), (1, 1), "SAME")


def shrink(h: Maps) -> Pooled:
    """Computes 3 x 3 max pooling of stride 2."""
    return nn.max_pool(h, (3, 3), (2, 2))


def chain(h: Maps, *layers: nn.Module) -> Pooled:
    """Applies the layers one after the other."""
    return functools.reduce(lambda h, layer: cast(Array, layer(h)), layers, h)


def side_by_side(*branches: Float[Array, "batch height width _"]) -> Pooled:
    """Concatenates the channels of the branches."""
    return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
    """Block at 35 x 35, with a 5 x 5 and with two 3 x 3 convolutions."""

    pool_features: int

    @nn.compact
    def __call__(self, h: Maps) -> Pooled:
        return side_by_side(
            Conv(64, name="branch1x1")(h),
            chain(h, Conv(48, name="branch5x5_1"), Conv(64, 5, name="branch5x5_2")),
            chain(
                h,
                Conv(64, name="branch3x3dbl_1"),
                Conv(96, 3, name="branch3x3dbl_2"),
                Conv(96, 3, name="branch3x3dbl_3"),
            ),
            Conv(self.pool_features, name="branch_pool")(average(h)),
        )


class BlockB(nn.Module):
    """Block that reduces 35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, h: Maps) -> Pooled:
        return side_by_side(
            Conv(384, 3, 2, name="branch3x3")(h),
            chain(
                h,
                Conv(64, name="branch3x3dbl_1"),
                Conv(96, 3, name="branch3x3dbl_2"),
                Conv(96, 3, 2, name="branch3x3dbl_3"),
            ),
            shrink(h),
        )


class BlockC(nn.Module):
    """Block at 17 x 17, with 7 x 7 convolutions factorised into 1 x 7 and 7 x 1."""

    features: int

    @nn.compact
    def __call__(self, h: Maps) -> Pooled:
        n, across, down = self.features, (1, 7), (7, 1)
        return side_by_side(
            Conv(192, name="branch1x1")(h),
            chain(
                h,
                Conv(n, name="branch7x7_1"),
                Conv(n, across, name="branch7x7_2"),
                Conv(192, down, name="branch7x7_3"),
            ),
            chain(
                h,
                Conv(n, name="branch7x7dbl_1"),
                Conv(n, down, name="branch7x7dbl_2"),
                Conv(n, across, name="branch7x7dbl_3"),
                Conv(n, down, name="branch7x7dbl_4"),
                Conv(192, across, name="branch7x7dbl_5"),
            ),
            Conv(192, name="branch_pool")(average(h)),
        )


class BlockD(nn.Module):
    """Block that reduces 17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, h: Maps) -> Pooled:
        return side_by_side(
            chain(h, Conv(192, name="branch3x3_1"), Conv(320, 3, 2, name="branch3x3_2")),
            chain(
                h,
                Conv(192, name="branch7x7x3_1"),
                Conv(192, (1, 7), name="branch7x7x3_2"),
                Conv(192, (7, 1), name="branch7x7x3_3"),
                Conv(192, 3, 2, name="branch7x7x3_4"),
            ),
            shrink(h),
        )


class BlockE(nn.Module):
    """Block at 8 x 8, with 1 x 3 and 3 x 1 convolutions side by side; the last block uses max pooling."""

    last: bool

    @nn.compact
    def __call__(self, h: Maps) -> Pooled:
        across, down = (1, 3), (3, 1)
        one = Conv(384, name="branch3x3_1")(h)
        two = chain(h, Conv(448, name="branch3x3dbl_1"), Conv(384, 3, name="branch3x3dbl_2"))
        pooled = maximum(h) if self.last else average(h)
        return side_by_side(
            Conv(320, name="branch1x1")(h),
            Conv(384, across, name="branch3x3_2a")(one),
            Conv(384, down, name="branch3x3_2b")(one),
            Conv(384, across, name="branch3x3dbl_3a")(two),
            Conv(384, down, name="branch3x3dbl_3b")(two),
            Conv(192, name="branch_pool")(pooled),
        )


class Inception(nn.Module):
    """InceptionV3 from images [batch, h, w, 3] in [-1, 1], at least 75 x 75, to features [batch, 2048]."""

    @nn.compact
    def __call__(self, x: Maps) -> Features:
        h = chain(
            x,
            Conv(32, 3, 2, name="Conv2d_1a_3x3"),
            Conv(32, 3, valid=True, name="Conv2d_2a_3x3"),
            Conv(64, 3, name="Conv2d_2b_3x3"),
        )
        h = chain(shrink(h), Conv(80, name="Conv2d_3b_1x1"), Conv(192, 3, valid=True, name="Conv2d_4a_3x3"))
        h = chain(
            shrink(h),
            BlockA(32, name="Mixed_5b"),
            BlockA(64, name="Mixed_5c"),
            BlockA(64, name="Mixed_5d"),
            BlockB(name="Mixed_6a"),
            BlockC(128, name="Mixed_6b"),
            BlockC(160, name="Mixed_6c"),
            BlockC(160, name="Mixed_6d"),
            BlockC(192, name="Mixed_6e"),
            BlockD(name="Mixed_7a"),
            BlockE(last=False, name="Mixed_7b"),
            BlockE(last=True, name="Mixed_7c"),
        )
        return h.mean(axis=(1, 2))


def features_of(variables: Any, images: Bytes) -> Features:
    """Computes features of images of any size, uint8, with one or three channels, preprocessed as in pytorch-fid."""
    x = jnp.broadcast_to(images, (*images.shape[:3], 3)).astype(jnp.float32) / 255.0
    x = jax.image.resize(x, (len(x), SIDE, SIDE, 3), "bilinear", antialias=False)
    return cast(Array, Inception().apply(variables, 2.0 * x - 1.0))
