"""NVAE's autoregressive flow of a latent: it preserves volume, so log q is that of what goes in."""

import numpy as np
from flax import linen as nn

from lsgm_jax.autoencoders.nvae_cells import Conv, Mask
from lsgm_jax.nn.layers import Maps

EXPANSION = 6


def causal_mask(
    size: int, inputs: np.ndarray, outputs: np.ndarray, *, strict: bool, mirrored: bool = False
) -> Mask:
    """Kernel mask that shows each output only what comes before its own pixel and latent channel.

    Rows above and pixels to the left are visible. At the centre, an output sees the inputs of latent channels less than
    its own; without `strict`, also those of its own. Mirrored masks are turned in space and keep the order of channels.

    Args:
        size: odd width of the kernel.
        inputs: latent channel that each input belongs to.
        outputs: the same of each output.
        strict: hides an output's own latent channel at its own pixel.
        mirrored: shows rows below and pixels to the right instead.
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
    """Masks of the three convolutions of a flow cell over a latent with so many channels."""
    latent = np.arange(channels)
    inner = np.repeat(latent, EXPANSION)
    # A depthwise output has one input, of its own latent channel, which the first convolution has kept causal.
    depthwise = causal_mask(5, np.zeros(1), np.zeros(len(inner)), strict=False, mirrored=mirrored)
    return (
        causal_mask(3, latent, inner, strict=True, mirrored=mirrored),
        depthwise,
        causal_mask(1, inner, latent, strict=False, mirrored=mirrored),
    )


class FlowCell(nn.Module):
    """Subtracts m(z) from z, where each entry of m sees only the entries of z before it."""

    mirrored: bool

    @nn.compact
    def __call__(self, z: Maps) -> Maps:
        channels = z.shape[-1]
        inner = EXPANSION * channels
        first, depthwise, last = flow_masks(channels, mirrored=self.mirrored)
        h = nn.elu(Conv(inner, 3, use_bias=False, name="first")(z, first))
        h = nn.elu(Conv(inner, 5, feature_groups=inner, use_bias=False, name="depthwise")(h, depthwise))
        return z - Conv(channels, 1, name="last")(h, last)


class FlowPair(nn.Module):
    """Two flow cells that look in opposite directions."""

    @nn.compact
    def __call__(self, z: Maps) -> Maps:
        z = FlowCell(mirrored=False, name="forward")(z)
        return FlowCell(mirrored=True, name="mirrored")(z)
