"""Algebra of k x k matrices that act on the coordinates of a state, for k = 1 or 2.

The functions are unrolled over k and elementwise otherwise, so XLA fuses them with the code around them.
"""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Latents, State, as_state, coordinates, expand

Scalars = Float[Array, "..."]
Vector = Float[Array, "... k"]
Matrix = Float[Array, "... k k"]
PerSampleMatrix = Float[Array, "batch k k"]


def as_matrix(rows: Sequence[Sequence[Scalars]]) -> Matrix:
    """Stacks entries [...] to matrices [..., k, k]."""
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def matvec(matrix: PerSampleMatrix, state: State) -> State:
    """Multiplies the coordinates of every latent dimension by the matrix of its sample."""
    values = coordinates(state)

    def row(i: int) -> Latents:
        terms = [expand(matrix[:, i, j], value) * value for j, value in enumerate(values)]
        return functools.reduce(jnp.add, terms)

    return as_state([row(i) for i in range(len(values))])


def solve_lower(lower: Matrix, vector: Vector) -> Vector:
    """Returns lower^-1 vector."""
    values = [vector[..., i] for i in range(vector.shape[-1])]
    return jnp.stack(_substitute(lambda i, j: lower[..., i, j], values), axis=-1)


def solve_lower_state(lower: PerSampleMatrix, state: State) -> tuple[Latents, ...]:
    """Returns lower^-1 applied to the coordinates of every latent dimension."""
    values = coordinates(state)
    return tuple(_substitute(lambda i, j: expand(lower[:, i, j], values[0]), values))


def _substitute(entry: Callable[[int, int], Array], values: Sequence[Array]) -> list[Array]:
    """Solves a lower triangular system by forward substitution."""
    solved: list[Array] = []
    for i, value in enumerate(values):
        known = sum(entry(i, j) * earlier for j, earlier in enumerate(solved))
        solved.append((value - known) / entry(i, i))
    return solved


def add_noise(lower: Matrix, vector: Vector) -> Matrix:
    """Returns the Cholesky factor of L L^T + b b^T, by rotations that stay accurate where b is much larger (D8)."""
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
