"""LPIPS, the perceptual distance of Zhang et al. (2018), as VQGAN and latent diffusion use it.

The distance compares features of a VGG16 trained on ImageNet, weighted by heads trained on human judgements. This
package does not include the trained weights; freshly initialised ones only have the right shapes.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from lsgm_jax.arrays import Images, PerSample, at_least_float32
from lsgm_jax.nn.layers import Conv, Maps

# Mean and standard deviation of images in [-1, 1], per colour.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """LPIPS of two batches of images in [-1, 1], [batch, h, w, 3] each -> distances [batch].

    The heads have no dropout: the original has it at rate 0.5, but disables it in evaluation mode.

    Attributes:
        widths: channels of each group of convolutions, VGG16's by default.
        convolutions: number of convolutions in each group.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    convolutions: tuple[int, ...] = (2, 2, 3, 3, 3)

    @nn.compact
    def __call__(self, a: Images, b: Images) -> PerSample:
        both = Standardise(name="standardise")(jnp.concatenate([a, b]))
        distance = jnp.zeros(len(a), at_least_float32(a).dtype)
        groups = VGGFeatures(self.widths, self.convolutions, name="features")(both)
        for index, maps in enumerate(groups):
            features_a, features_b = jnp.split(_unit(at_least_float32(maps)), 2)
            head = self.param(f"head_{index}", nn.initializers.ones, maps.shape[-1:], jnp.float32)
            distance += jnp.mean((features_a - features_b) ** 2 @ head, axis=(1, 2))
        return distance


class Standardise(nn.Module):
    """Normalises colours by `shift` and `scale` of the collection "constants", [batch, h, w, 3] -> the same shape."""

    @nn.compact
    def __call__(self, x: Images) -> Images:
        shift = self.variable("constants", "shift", lambda: jnp.asarray(SHIFT))
        scale = self.variable("constants", "scale", lambda: jnp.asarray(SCALE))
        return ((x - shift.value) / scale.value).astype(x.dtype)


class VGGFeatures(nn.Module):
    """Features of VGG16 after each group of convolutions: images -> a list of feature maps.

    Group i gives maps [batch, h / 2^i, w / 2^i, widths[i]].

    Attributes:
        widths: channels of each group.
        convolutions: number of convolutions in each group.
    """

    widths: tuple[int, ...]
    convolutions: tuple[int, ...]

    @nn.compact
    def __call__(self, h: Images) -> list[Array]:
        features = []
        for group, (width, count) in enumerate(zip(self.widths, self.convolutions, strict=True)):
            if group:
                h = nn.max_pool(h, (2, 2), strides=(2, 2))
            for index in range(count):
                h = nn.relu(Conv(width, (3, 3), dtype=h.dtype, name=f"conv_{group}_{index}")(h))
            features.append(h)
        return features


def _unit(features: Maps) -> Maps:
    """Normalises the features of each pixel to unit length; zero features stay zero."""
    squared = jnp.sum(features**2, axis=-1, keepdims=True)
    # The derivative of the root is infinite at 0, where ReLU has set all features to zero.
    length = jnp.where(squared > 0.0, jnp.sqrt(jnp.where(squared > 0.0, squared, 1.0)), 0.0)
    return features / (length + 1e-10)
