"""Weight penalties: power iteration finds the singular values, and its gradient is theirs."""

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.objectives import regularisers


def matrices():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"a": (5, 12), "b": (7, 9), "c": (5, 12), "d": (3, 3)}
    return {
        name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def shapes(weights):
    return {name: matrix.shape for name, matrix in weights.items()}


def test_penalty_is_the_sum_of_the_largest_singular_values(x64):
    weights = matrices()
    vectors = regularisers.first_vectors(jax.random.key(1), shapes(weights))
    penalty, vectors = regularisers.spectral_penalty(weights, vectors, 400)
    exact = {name: np.linalg.svd(w) for name, w in weights.items()}
    np.testing.assert_allclose(penalty, sum(s[0] for _, s, _ in exact.values()), rtol=1e-10)
    for name, (u, _, vt) in exact.items():
        np.testing.assert_allclose(abs(vectors[name].u @ u[:, 0]), 1.0, rtol=1e-8)
        np.testing.assert_allclose(abs(vectors[name].v @ vt[0]), 1.0, rtol=1e-8)


def test_power_iteration_resumes_from_returned_vectors(x64):
    """Ten times four iterations equal forty."""
    weights = matrices()
    start = vectors = regularisers.first_vectors(jax.random.key(1), shapes(weights))
    for _ in range(10):
        penalty, vectors = regularisers.spectral_penalty(weights, vectors, 4)
    at_once, forty = regularisers.spectral_penalty(weights, start, 40)
    np.testing.assert_allclose(penalty, at_once, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), vectors, forty)


def test_gradient_of_a_singular_value_is_the_outer_product(x64):
    weights = matrices()
    vectors = regularisers.first_vectors(jax.random.key(1), shapes(weights))
    gradient = jax.grad(lambda w: regularisers.spectral_penalty(w, vectors, 400)[0])(weights)
    for name, w in weights.items():
        u, _, vt = np.linalg.svd(w)
        np.testing.assert_allclose(gradient[name], np.outer(u[:, 0], vt[0]), atol=1e-7)


def test_a_kernel_is_a_matrix_with_a_row_per_output():
    """The singular values of a 1x1 convolution are those of the map between channels."""
    kernel = jax.random.normal(jax.random.key(2), (1, 1, 4, 6))
    matrix = regularisers.as_matrix(kernel)
    x = jax.random.normal(jax.random.key(3), (4,))
    np.testing.assert_allclose(matrix @ x, x @ kernel[0, 0], rtol=1e-5)
    assert regularisers.as_matrix(jnp.zeros((3, 3, 4, 6))).shape == (6, 36)


def test_scale_penalty_takes_the_largest_of_each_layer():
    scales = [jnp.array([0.5, -2.0]), jnp.array([1.0, 0.1, 0.3])]
    assert regularisers.scale_penalty(scales) == 3.0
    gradient = jax.grad(lambda s: regularisers.scale_penalty(s))(scales)
    np.testing.assert_array_equal(gradient[0], [0.0, -1.0])
