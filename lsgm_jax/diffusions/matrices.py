"""Algebra of k x k matrices that act on the coordinates of a state, for k of one or two.

Everything is unrolled over k and elementwise otherwise, so XLA fuses it with what surrounds it.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Latents, State, as_state, coordinates, expand

Scalars = Float[Array, "..."]
Vector = Float[Array, "... k"]
Matrix = Float[Array, "... k k"]
PerSampleMatrix = Float[Array, "batch k k"]


def as_matrix(rows: Sequence[Sequence[Scalars]]) -> Matrix:
    """Stacks entries that depend on time, [...] each, to matrices [..., k, k]."""
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def matvec(matrix: PerSampleMatrix, state: State) -> State:
    """Multiplies the coordinates of every latent dimension by its sample's matrix."""
    values = coordinates(state)

    def row(i: int) -> Latents:
        terms = [expand(matrix[:, i, j], value) * value for j, value in enumerate(values)]
        return functools.reduce(jnp.add, terms)

    return as_state([row(i) for i in range(len(values))])


def solve_lower(lower: Matrix, vector: Vector) -> Vector:
    """lower^-1 vector by forward substitution."""
    solved: list[Scalars] = []
    for i in range(lower.shape[-1]):
        known = sum(lower[..., i, j] * value for j, value in enumerate(solved))
        solved.append((vector[..., i] - known) / lower[..., i, i])
    return jnp.stack(solved, axis=-1)


def solve_lower_state(lower: PerSampleMatrix, state: State) -> tuple[Latents, ...]:
    """`solve_lower` for the coordinates of a state."""
    solved: list[Latents] = []
    for i, value in enumerate(coordinates(state)):
        known = sum(expand(lower[:, i, j], value) * earlier for j, earlier in enumerate(solved))
        solved.append((value - known) / expand(lower[:, i, i], value))
    return tuple(solved)


def add_noise(lower: Matrix, vector: Vector) -> Matrix:
    """Cholesky factor of L L^T + b b^T by rotations, which keep the digits of L where b is much larger (D8)."""
    size = lower.shape[-1]
    columns = [[lower[..., i, j] for i in range(size)] for j in range(size)]
    rest = [vector[..., i] for i in range(size)]
    for j, column in enumerate(columns):
        length = jnp.hypot(column[j], rest[j])
        safe = jnp.where(length > 0.0, length, 1.0)
        cosine, sine = jnp.where(length > 0.0, column[j] / safe, 1.0), rest[j] / safe
        for i in range(j + 1, size):
            column[i], rest[i] = (
                cosine * column[i] + sine * rest[i],
                cosine * rest[i] - sine * column[i],
            )
        column[j] = length
    return as_matrix([[columns[j][i] for j in range(size)] for i in range(size)])
