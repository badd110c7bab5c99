"""The autoregressive flow of NVAE on a latent; it preserves volume, so log q of output and input are equal."""

import numpy as np
from flax import linen as nn

from lsgm_jax.autoencoders.nvae_cells import Conv, Mask
from lsgm_jax.nn.layers import Maps

EXPANSION = 6


def causal_mask(
    size: int, inputs: np.ndarray, outputs: np.ndarray, *, strict: bool, mirrored: bool = False
) -> Mask:
    """Builds a kernel mask of 0 and 1 for a causal convolution, in raster order of pixels, then latent channels.

    An output depends on the rows above and on the pixels to the left. At its own pixel it depends on inputs of smaller
    latent channels and, unless `strict`, of its own.

    Args:
        size: odd height and width of the kernel.
        inputs: latent channel of each input.
        outputs: latent channel of each output.
        strict: whether an output must not depend on its own latent channel at its own pixel.
        mirrored: whether to show rows below and pixels to the right instead; the order of channels stays the same.
    """
    mask = np.zeros((size, size, len(inputs), len(outputs)), np.float32)
    centre = size // 2
    mask[:centre] = mask[centre, :centre] = 1.0
    if mirrored:
        mask = np.ascontiguousarray(mask[::-1, ::-1])
    visible = np.less if strict else np.less_equal
    mask[centre, centre] = visible(inputs[:, None], outputs[None, :])
    return mask


def flow_masks(channels: int, *, mirrored: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Builds the masks of the three convolutions of a flow cell, for a latent with `channels` channels."""
    latent = np.arange(channels)
    inner = np.repeat(latent, EXPANSION)
    # A depthwise output has one input, of its own latent channel, which is causal after the first convolution.
    depthwise = causal_mask(5, np.zeros(1), np.zeros(len(inner)), strict=False, mirrored=mirrored)
    return (
        causal_mask(3, latent, inner, strict=True, mirrored=mirrored),
        depthwise,
        causal_mask(1, inner, latent, strict=False, mirrored=mirrored),
    )


class FlowCell(nn.Module):
    """Flow z -> z - m(z), [batch, h, w, c] -> the same shape; an entry of m depends only on the entries of z before it.

    Attributes:
        mirrored: whether pixels are in reversed raster order.
    """

    mirrored: bool

    @nn.compact
    def __call__(self, z: Maps) -> Maps:
        channels = z.shape[-1]
        inner = EXPANSION * channels
        first, depthwise, last = flow_masks(channels, mirrored=self.mirrored)
        h = nn.elu(Conv(inner, 3, use_bias=False, name="first")(z, first))
        h = nn.elu(Conv(inner, 5, depthwise=True, use_bias=False, name="depthwise")(h, depthwise))
        return z - Conv(channels, 1, name="last")(h, last)


class FlowPair(nn.Module):
    """Two flow cells with opposite pixel orders, [batch, h, w, c] -> the same shape."""

    @nn.compact
    def __call__(self, z: Maps) -> Maps:
        z = FlowCell(mirrored=False, name="forward")(z)
        return FlowCell(mirrored=True, name="mirrored")(z)
