"""Maps as conditions, which networks are given beside the latent, in more channels."""

import jax.numpy as jnp

from lsgm_jax.nn.layers import Maps, Resized


def nearest(maps: Maps, height: int, width: int) -> Resized:
    """Maps of another size from single pixels, indices rounded down: of each cell that of its top left corner.

    So LDM reduces the masks of inpainting to the latent's size. Resizers with half-pixel centres pick other pixels.
    """
    rows = jnp.arange(height) * maps.shape[1] // height
    columns = jnp.arange(width) * maps.shape[2] // width
    return maps[:, rows][:, :, columns]
