"""Penalties on the weights of NVAE and the score network, for smoothness (NVAE section 3.2, LSGM appendix).

    spectral = sum over convolutions of u^T W v,        scale = sum over normalisation layers of max |scale|

W is the effective kernel of a convolution as a matrix [output channels, rest]. u and v are estimates of its leading
singular vectors by power iteration; they are kept between steps and have no gradient. The sum is over the largest
singular values, not over their squares.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsgm_jax.arrays import Key, Scalar

Kernel = Float[Array, "*window inputs outputs"]
Matrix = Float[Array, "_ _"]  # [output channels, rest], of a different size in every layer
Stack = Float[Array, "layers outputs rest"]


class SingularVectors(NamedTuple):
    """Estimates of a matrix's leading singular vectors, of unit length."""

    u: Float[Array, "*layers outputs"]
    v: Float[Array, "*layers rest"]


def as_matrix(kernel: Kernel) -> Matrix:
    """Returns the kernel [..., in, out] of a convolution as a matrix [out, rest]."""
    return kernel.reshape(-1, kernel.shape[-1]).T


def first_vectors(key: Key, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, SingularVectors]:
    """Draws random initial vectors. The first penalty should take more iterations (LSGM: 40) than later ones (4).

    Args:
        shapes: of the matrices, by name.
    """
    keys = jax.random.split(key, len(shapes))
    return {name: _random_vectors(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


def spectral_penalty(
    matrices: Mapping[str, Matrix],
    vectors: Mapping[str, SingularVectors],
    iterations: int | Int[Array, ""],
) -> tuple[Scalar, dict[str, SingularVectors]]:
    """Returns the sum of the largest singular values, and the vectors after `iterations` steps of power iteration.

    Matrices of equal shape are stacked: the published networks have hundreds of matrices of a few shapes. With a traced
    number of iterations, one compiled step can take more of them at first.
    """
    total, moved = jnp.zeros(()), {}
    for names in _by_shape(matrices):
        stack = jnp.stack([matrices[name] for name in names])
        start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(vectors[name] for name in names))
        found = _power_iteration(jax.lax.stop_gradient(stack), start, iterations)
        total += jnp.einsum("lo,lor,lr->", found.u, stack, found.v)
        moved |= {name: SingularVectors(found.u[i], found.v[i]) for i, name in enumerate(names)}
    return total, {name: moved[name] for name in matrices}


def scale_penalty(scales: Iterable[Float[Array, "_"]]) -> Scalar:
    """Returns the sum over normalisation layers of the largest absolute scale."""
    return sum((jnp.max(jnp.abs(scale)) for scale in scales), start=jnp.zeros(()))


def _random_vectors(key: Key, shape: tuple[int, ...]) -> SingularVectors:
    keys = jax.random.split(key)
    u, v = (_unit(jax.random.normal(k, (size,))) for k, size in zip(keys, shape, strict=True))
    return SingularVectors(u, v)


def _by_shape(matrices: Mapping[str, Matrix]) -> list[list[str]]:
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, matrix in matrices.items():
        groups.setdefault(matrix.shape, []).append(name)
    return list(groups.values())


def _power_iteration(
    stack: Stack, start: SingularVectors, iterations: int | Int[Array, ""]
) -> SingularVectors:
    def improve(_: Int[Array, ""], vectors: SingularVectors) -> SingularVectors:
        v = _unit(jnp.einsum("lo,lor->lr", vectors.u, stack))
        return SingularVectors(_unit(jnp.einsum("lor,lr->lo", stack, v)), v)

    return jax.lax.fori_loop(0, iterations, improve, start)


def _unit(x: Float[Array, "... size"]) -> Float[Array, "... size"]:
    """Returns x / |x|, with |x| at least 1e-3, so that it is finite for a layer of zeros."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-3)
