"""The patch discriminator (PatchGAN, Isola et al. 2017) for the adversarial loss of first stages."""

from flax import linen as nn

from lsgm_jax.arrays import Images
from lsgm_jax.autoencoders.nvae_cells import BatchNorm
from lsgm_jax.nn.layers import Conv, Maps, Resized

NARROW = nn.initializers.normal(0.02)
NORM_MOMENTUM = 0.1
MOST_WIDENING = 8


class PatchDiscriminator(nn.Module):
    """Images [batch, h, w, c] -> one logit per patch [batch, h', w', 1]; a high logit classifies the patch as real.

    The receptive field of a logit is a square of pixels, 70 x 70 with three layers. Call it separately on real images
    and on reconstructions, as each batch is normalised by its own statistics.

    Attributes:
        channels: channels of the first layer; each further layer doubles them, up to a factor of eight.
        layers: number of layers that halve the resolution.
    """

    channels: int = 64
    layers: int = 3

    def __post_init__(self):
        super().__post_init__()
        if self.channels < 1 or self.layers < 1:
            raise ValueError(f"channels={self.channels}, layers={self.layers}: give positive numbers")

    @nn.compact
    def __call__(self, x: Images, *, train: bool) -> Resized:
        h = _leaky(_conv("conv_0", x, self.channels, stride=2))
        for index in range(1, self.layers + 1):
            width = self.channels * min(2**index, MOST_WIDENING)
            # The last layer keeps the resolution. Batch normalisation makes a bias redundant.
            stride = 2 if index < self.layers else 1
            h = _conv(f"conv_{index}", h, width, stride=stride, use_bias=False)
            norm = BatchNorm(momentum=NORM_MOMENTUM, scale_init=_around_one, name=f"norm_{index}")
            h = _leaky(norm(h, train=train))
        return _conv("logit", h, 1, stride=1)


def _conv(name: str, h: Maps, channels: int, *, stride: int, use_bias: bool = True) -> Resized:
    """Applies a 4 x 4 convolution with one pixel of padding, which shrinks its input by one pixel at stride 1."""
    conv = Conv(
        channels,
        (4, 4),
        strides=stride,
        padding=1,
        use_bias=use_bias,
        kernel_init=NARROW,
        dtype=h.dtype,
        name=name,
    )
    return conv(h)


def _leaky(h: Maps) -> Maps:
    return nn.leaky_relu(h, negative_slope=0.2)


_around_one: nn.initializers.Initializer = lambda *shape: 1.0 + NARROW(*shape)
