"""Vector quantisation (van den Oord et al. 2017): latents rounded to the nearest entry of a learned codebook."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsgm_jax.arrays import Key, Scalar
from lsgm_jax.nn.layers import at_least_float32

Codebook = Float[Array, "entries width"]
Vectors = Float[Array, "*places width"]
Indices = Int[Array, "*places"]


class Quantised(NamedTuple):
    """Latents rounded to the codebook.

    Attributes:
        values: entries of the codebook; their gradient passes straight through to what was rounded.
        indices: of the entries.
        loss: moves latents and codebook towards each other; mean over all numbers.
    """

    values: Vectors
    indices: Indices
    loss: Scalar


class Usage(NamedTuple):
    """How much of a codebook a batch uses.

    Attributes:
        perplexity: exp of the entropy of the entries' frequencies: the number of entries, if all are as frequent.
        used: number of entries that occur at all.
    """

    perplexity: Scalar
    used: Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantiser:
    """A codebook's size and loss; the codebook itself is the parameter.

    Attributes:
        beta: weight of one half of the loss.
        legacy: whether beta weighs the half that moves the codebook, and the commitment of the latents has weight one.
            So it is in all published VQ models of latent diffusion. False for the paper's loss, where beta weighs the
            commitment: its value is the same, its gradients are not.

    Raises:
        ValueError: for an empty codebook or a negative beta.
    """

    entries: int
    width: int
    beta: float = 0.25
    legacy: bool = True

    def __post_init__(self):
        if min(self.entries, self.width) < 1:
            raise ValueError(
                f"entries={self.entries}, width={self.width}: a codebook has one of each at least"
            )
        if self.beta < 0.0:
            raise ValueError(f"beta={self.beta}: a weight is at least 0")

    def init(self, key: Key) -> Codebook:
        """Uniform within plus or minus 1 / entries."""
        bound = 1.0 / self.entries
        return jax.random.uniform(key, (self.entries, self.width), minval=-bound, maxval=bound)

    def __call__(self, codebook: Codebook, z: Vectors) -> Quantised:
        """Rounds every vector along the last axis of `z`."""
        indices = nearest(codebook, z)
        entries = codebook[indices].astype(z.dtype)
        frozen_z, frozen_entries = jax.lax.stop_gradient((z, entries))
        to_entries, to_latents = _mean_square(z - frozen_entries), _mean_square(entries - frozen_z)
        weights = (1.0, self.beta) if self.legacy else (self.beta, 1.0)
        loss = weights[0] * to_entries + weights[1] * to_latents
        return Quantised(frozen_entries + (z - frozen_z), indices, loss)


def nearest(codebook: Codebook, z: Vectors) -> Indices:
    """Index of the entry at the least Euclidean distance, in full precision: a rounding error would choose another.

    All distances, places times entries, are in memory at once.
    """
    z, codebook = at_least_float32(z), at_least_float32(codebook)
    products = jnp.einsum("...w,ew->...e", z, codebook, precision=jax.lax.Precision.HIGHEST)
    # The square of z is the same for all entries.
    return jnp.argmin(jnp.sum(codebook**2, axis=1) - 2.0 * products, axis=-1)


def usage(indices: Indices, entries: int) -> Usage:
    """Over all places of a batch together."""
    counts = jnp.bincount(indices.reshape(-1), length=entries)
    frequencies = counts / indices.size
    return Usage(jnp.exp(jnp.sum(jax.scipy.special.entr(frequencies))), jnp.sum(counts > 0))


def _mean_square(values: Vectors) -> Scalar:
    return jnp.mean(at_least_float32(values) ** 2)
