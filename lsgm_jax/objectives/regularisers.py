"""Penalties on weights that keep NVAE and the score network smooth (NVAE section 3.2, LSGM appendix).

    spectral = sum over convolutions of u^T W v,        scale = sum over normalisation layers of max |scale|

W is a convolution's effective kernel as a matrix, output channels by all else; u and v approach its leading singular
vectors by power iteration, are carried from step to step, and take no gradient. The sum is of the largest singular
values themselves, not of their squares.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsgm_jax.arrays import Key, Scalar

Kernel = Float[Array, "*window inputs outputs"]
Matrix = Float[Array, "_ _"]  # output channels, everything else; of another size in every layer
Stack = Float[Array, "layers outputs rest"]


class SingularVectors(NamedTuple):
    """Estimates of a matrix's leading singular vectors, of unit length."""

    u: Float[Array, "*layers outputs"]
    v: Float[Array, "*layers rest"]


def as_matrix(kernel: Kernel) -> Matrix:
    """A convolution's kernel [..., in, out] as a matrix [out, rest]."""
    return kernel.reshape(-1, kernel.shape[-1]).T


def first_vectors(key: Key, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, SingularVectors]:
    """Random directions; the first penalty should take more iterations than the later ones (LSGM: 40, then 4).

    Args:
        shapes: of the matrices.
    """
    keys = jax.random.split(key, len(shapes))
    return {name: _random_vectors(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


def spectral_penalty(
    matrices: Mapping[str, Matrix],
    vectors: Mapping[str, SingularVectors],
    iterations: int | Int[Array, ""],
) -> tuple[Scalar, dict[str, SingularVectors]]:
    """Sum of the largest singular values, and the vectors after `iterations` more steps of power iteration.

    Matrices of one shape are iterated on together: the published networks have hundreds, of a few shapes. A traced
    number of iterations lets one compiled step take more of them at first.
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
    """Sum over normalisation layers of the largest absolute scale."""
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
    """Normalised, unless it is shorter than 1e-3: a dead layer keeps a finite direction."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-3)
