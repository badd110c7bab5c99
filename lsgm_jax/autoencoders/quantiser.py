"""Vector quantisation (van den Oord et al. 2017): maps latents to the nearest entries of a learned codebook."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsgm_jax.arrays import Key, Scalar, at_least_float32

Codebook = Float[Array, "entries width"]
Vectors = Float[Array, "*places width"]
Indices = Int[Array, "*places"]


class Quantised(NamedTuple):
    """Quantised latents.

    Attributes:
        values: codebook entries, with the straight-through gradient to the latents before quantisation.
        indices: indices of the entries.
        loss: codebook and commitment loss, a mean over all values of the batch.
    """

    values: Vectors
    indices: Indices
    loss: Scalar


class Usage(NamedTuple):
    """Codebook usage of a batch.

    Attributes:
        perplexity: exp of the entropy of the entries' frequencies; the number of entries if all are equally frequent.
        used: number of entries that occur in the batch.
    """

    perplexity: Scalar
    used: Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantiser:
    """Vector quantiser; its parameter is the codebook [entries, width].

    Attributes:
        entries: number of codebook entries.
        width: features per entry.
        beta: weight of one of the two terms of the loss.
        legacy: whether beta weights the codebook term, and the commitment term has weight one, as in all published VQ
            models of latent diffusion. False for the loss of the paper, where beta weights the commitment term. Both
            losses have the same value but different gradients.

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
        """Draws a codebook, uniform on [-1 / entries, 1 / entries]."""
        bound = 1.0 / self.entries
        return jax.random.uniform(key, (self.entries, self.width), minval=-bound, maxval=bound)

    def __call__(self, codebook: Codebook, z: Vectors) -> Quantised:
        """Quantises each vector along the last axis of `z`."""
        indices = nearest(codebook, z)
        entries = codebook[indices].astype(z.dtype)
        frozen_z, frozen_entries = jax.lax.stop_gradient((z, entries))
        to_entries, to_latents = _mean_square(z - frozen_entries), _mean_square(entries - frozen_z)
        weights = (1.0, self.beta) if self.legacy else (self.beta, 1.0)
        loss = weights[0] * to_entries + weights[1] * to_latents
        return Quantised(frozen_entries + (z - frozen_z), indices, loss)


def nearest(codebook: Codebook, z: Vectors) -> Indices:
    """Returns the index of the nearest codebook entry, by Euclidean distance, for each vector of `z`.

    It computes in full precision, as rounding errors could change the nearest entry. The distances of all vectors to
    all entries are in memory at the same time.
    """
    z, codebook = at_least_float32(z), at_least_float32(codebook)
    products = jnp.einsum("...w,ew->...e", z, codebook, precision=jax.lax.Precision.HIGHEST)
    # The square of z is the same for all entries.
    return jnp.argmin(jnp.sum(codebook**2, axis=1) - 2.0 * products, axis=-1)


def usage(indices: Indices, entries: int) -> Usage:
    """Computes the codebook usage over all vectors of a batch."""
    counts = jnp.bincount(indices.reshape(-1), length=entries)
    frequencies = counts / indices.size
    return Usage(jnp.exp(jnp.sum(jax.scipy.special.entr(frequencies))), jnp.sum(counts > 0))


def _mean_square(values: Vectors) -> Scalar:
    return jnp.mean(at_least_float32(values) ** 2)
