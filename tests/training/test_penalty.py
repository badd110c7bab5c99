"""Penalties on weights: their values and gradients, the weights they cover, and their memory between steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from lsgm_jax.autoencoders.backbones import Hierarchical
from lsgm_jax.autoencoders.nvae_flow import flow_masks
from lsgm_jax.nn.network import Aux
from lsgm_jax.nn.penalised import Penalised, penalised
from lsgm_jax.objectives.regularisers import SingularVectors
from lsgm_jax.training.penalty import Penalty, first_memory, penalise
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import EMA, make_step
from tests import tiny

SHAPES = {"a": (3, 3, 4, 6), "b": (3, 3, 4, 6), "c": (5, 5, 1, 8), "shortcut": (6, 4)}


def weights():
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    kernels = {n: jax.random.normal(k, shape) for k, (n, shape) in zip(keys, SHAPES.items(), strict=True)}
    return Penalised(kernels, {"norm_0": jnp.array([0.5, -2.0]), "norm_1": jnp.array([1.0, 0.1, 0.3])})


def as_matrix(kernel):
    return np.asarray(kernel).reshape(-1, kernel.shape[-1]).T


def largest(kernel):
    return np.linalg.norm(as_matrix(kernel), 2)


def count(step):
    return jnp.asarray(step, jnp.int32)


def test_the_penalty_converges_to_the_exact_one(x64):
    """That is the weight times the sum of the largest singular values and largest scales of all layers."""
    penalty, held = Penalty(weight=0.3), weights()
    call, vectors = jax.jit(penalty), penalty.first_vectors(held, jax.random.key(1))
    for step in range(100):
        value, vectors = call(held, vectors, count(step))
    exact = sum(largest(kernel) for kernel in held.kernels.values()) + 2.0 + 1.0
    np.testing.assert_allclose(value, 0.3 * exact, rtol=1e-9)


def test_the_gradient_is_that_of_the_exact_singular_values(x64):
    penalty, held = Penalty(weight=0.3, first_iterations=1000), weights()
    vectors = penalty.first_vectors(held, jax.random.key(1))

    def exact(held):
        matrices = [kernel.reshape(-1, kernel.shape[-1]) for kernel in held.kernels.values()]
        spectral = sum(jnp.linalg.norm(matrix, 2) for matrix in matrices)
        return 0.3 * (spectral + sum(jnp.max(jnp.abs(scale)) for scale in held.scales.values()))

    ours = jax.grad(lambda held: penalty(held, vectors, count(0))[0])(held)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), ours, jax.grad(exact)(held))


def power_method(kernel, u, iterations):
    matrix = as_matrix(kernel)
    for _ in range(iterations):
        v = matrix.T @ u / np.linalg.norm(matrix.T @ u)
        u = matrix @ v / np.linalg.norm(matrix @ v)
    return u @ matrix @ v, u


def test_the_first_step_takes_first_iterations_and_the_others_iterations(x64):
    penalty, held = Penalty(weight=1.0, iterations=2, first_iterations=7), weights()
    vectors = penalty.first_vectors(held, jax.random.key(1))
    u, call = {name: np.asarray(pair.u) for name, pair in vectors.items()}, jax.jit(penalty)
    for step, iterations in ((0, 7), (1, 2), (5, 2)):
        total = 2.0 + 1.0
        for name, kernel in held.kernels.items():
            value, u[name] = power_method(kernel, u[name], iterations)
            total += value
        value, vectors = call(held, vectors, count(step))
        np.testing.assert_allclose(value, total, rtol=1e-12)
        for name, pair in vectors.items():
            np.testing.assert_allclose(pair.u, u[name], rtol=1e-9)


def test_without_the_spectral_penalty_the_scale_penalty_remains():
    """There are no singular vectors; without scales, as in a network without normalisations, it is zero."""
    penalty, held = Penalty(weight=0.3, spectral=False), weights()
    assert penalty.first_vectors(held, jax.random.key(0)) == {}
    value, vectors = penalty(held, {}, count(0))
    np.testing.assert_allclose(value, 0.3 * 3.0, rtol=1e-6)
    assert vectors == {}
    assert penalty(held._replace(scales={}), {}, count(0))[0] == 0.0


def test_a_weight_of_zero_disables_the_penalty():
    """There is no memory, no metric and no computation of it."""

    def loss(params, batch, context):
        return jnp.sum(params["w"] ** 2), Aux({}, {}, {"net": None})

    penalties = {"net": Penalty(weight=0.0)}
    assert first_memory(loss, penalties, None)(None, jax.random.key(0)) == {}
    state = create_state({"w": jnp.ones(3)}, optax.sgd(0.1), {})
    step = make_step(penalise(loss, penalties), optax.sgd(0.1), EMA(0.5))
    after, metrics = step(state, None, jax.random.key(0))
    assert (after.memory, set(metrics)) == ({}, {"loss", "gradient_norm", "skipped", "skipped_in_a_row"})
    assert float(metrics["loss"]) == 3.0


def test_each_step_starts_from_the_singular_vectors_of_the_last():
    """They are stored in the memory of the state while the weights change."""

    def loss(params, batch, context):
        held = Penalised({"conv": params["kernel"]}, {})
        return jnp.sum(params["kernel"] ** 2), Aux({}, {}, {"net": held})

    params, penalties = {"kernel": weights().kernels["a"]}, {"net": Penalty(weight=0.1, first_iterations=3)}
    memory = first_memory(loss, penalties, None)(params, jax.random.key(1))
    state = create_state(params, optax.sgd(0.01), memory)
    step = jax.jit(make_step(penalise(loss, penalties), optax.sgd(0.01), EMA(0.5)))
    for number in range(3):
        kernel, before = state.params["kernel"], state.memory["net"]
        value, after = penalties["net"](Penalised({"conv": kernel}, {}), before, count(number))
        state, metrics = step(state, None, jax.random.key(0))
        np.testing.assert_allclose(metrics["net_penalty"], value, rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], jnp.sum(kernel**2) + value, rtol=1e-5)
        np.testing.assert_allclose(state.memory["net"]["conv"].u, after["conv"].u, atol=1e-5)
        assert not np.array_equal(after["conv"].u, before["conv"].u)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0: a penalty needs a weight of at least 0"),
        ({"iterations": 0}, "iterations=0: the power method needs at least one"),
        ({"first_iterations": 0}, "first_iterations=0: the power method needs at least one"),
    ],
)
def test_invalid_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Penalty(**fields)


def test_it_covers_convolutions_and_normalisations():
    """For a network without weight normalisation; dense layers, attention, biases and time embeddings are skipped."""
    score_net = jax.eval_shape(tiny.model("--config.score.attention=(4,)").init, jax.random.key(0))[
        "score_net"
    ]
    held = jax.eval_shape(penalised, score_net)
    kernels = {path[:-1]: leaf for path, leaf in flatten_dict(score_net).items() if path[-1] == "kernel"}
    left = {"/".join(path) for path in kernels} - held.kernels.keys()
    assert held.kernels.keys() < {"/".join(path) for path in kernels}
    assert all(kernels[tuple(name.split("/"))].ndim == 4 for name in held.kernels if "shortcut" not in name)
    assert all(any(part in name for part in ("embed", "Dense", "Attention")) for name in left), left
    scales = {"/".join(path[:-1]) for path in flatten_dict(score_net) if path[-1] == "scale"}
    assert held.scales.keys() == scales


@pytest.mark.slow
def test_the_kernels_of_nvae_are_those_it_applies():
    """Masked and normalised, exp(log norm) w / |w| per output channel; as stored inside inverted bottlenecks."""
    net = tiny.nvae(use_se=False, flows=1, out_channels=1)
    backbone = Hierarchical(image_shape=(8, 8, 1), net=net)
    params = jax.jit(backbone.init)(jax.random.key(0))
    encode = jax.jit(
        lambda params: backbone.autoencode(params, tiny.batch(2).x, jax.random.key(1), train=True)
    )
    held, layers = encode(params).penalised, flatten_dict(params["net"])
    convolutions = {path[:-1] for path, leaf in layers.items() if path[-1] == "kernel" and leaf.ndim == 4}
    assert held.kernels.keys() == {"/".join(path) for path in convolutions}
    masks = {
        (cell, name): mask
        for cell, mirrored in (("forward", False), ("mirrored", True))
        for name, mask in zip(("first", "depthwise", "last"), flow_masks(2, mirrored=mirrored), strict=True)
    }
    for path in convolutions:
        kernel = np.asarray(layers[*path, "kernel"]) * masks.get(path[-2:], 1.0)
        if (*path, "log_norm") in layers:
            lengths = np.sqrt((kernel**2).sum((0, 1, 2)))
            kernel = np.exp(layers[*path, "log_norm"]) * kernel / (lengths + 1e-5)
        np.testing.assert_allclose(held.kernels["/".join(path)], kernel, rtol=1e-4, atol=1e-6)
    assert any(path[-2:] in masks for path in convolutions)
    assert any((*path, "log_norm") not in layers for path in convolutions)
    penalty = Penalty(weight=1.0, first_iterations=2000)
    vectors = penalty.first_vectors(held, jax.random.key(2))
    assert all(isinstance(pair, SingularVectors) for pair in vectors.values())
    exact = sum(map(largest, held.kernels.values())) + sum(np.abs(s).max() for s in held.scales.values())
    np.testing.assert_allclose(jax.jit(penalty)(held, vectors, count(0))[0], exact, rtol=1e-4)
