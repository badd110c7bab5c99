"""A loop over equal modules has the outputs, gradients, statistics and kernels of the same modules in turn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lsgm_jax.autoencoders.nvae_cells import Cell
from lsgm_jax.nn.network import Compute, StatefulNetwork
from lsgm_jax.nn.repeat import repeat, written_out


class Chain(nn.Module):
    """Cells, each of which adds its own input; returns the last state and the mean of every one."""

    cells: int

    @nn.compact
    def __call__(self, h, xs, *, train):
        def apply(modules, h, x):
            (cell,) = modules
            h = cell(h + x, train=train)
            return h, jnp.mean(h, axis=(1, 2))

        cells = [[Cell(4, expansion=2, name=f"cell_{i}")] for i in range(self.cells)]
        return repeat(apply, cells, h, xs)


@pytest.fixture
def chain(x64):
    h, *xs = jax.random.normal(jax.random.key(1), (6, 3, 4, 4, 4))
    net = StatefulNetwork(Chain(5))
    params = net.init(jax.random.key(0), h, xs)
    return (
        net,
        jax.tree.map(lambda leaf: leaf + 0.1 * np.cos(np.arange(leaf.size)).reshape(leaf.shape), params),
        h,
        xs,
    )


def both(function, *inputs):
    """What a function returns with loops, and without."""
    with written_out():
        in_turn = jax.jit(lambda *inputs: function(*inputs))(*inputs)
    return jax.jit(function)(*inputs), in_turn


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_equals_its_repetitions(chain, train, remat):
    net, params, h, xs = chain
    net = StatefulNetwork(net.module, Compute(remat=remat))

    def loss(params, h, xs):
        (last, means), moved, kernels = net.apply(params, h, xs, train=train)
        return jnp.sum(last**3) + sum(jnp.sum(mean**2) for mean in means), (means, moved, kernels)

    loop, in_turn = both(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), params, h, xs)
    assert jax.tree.structure(loop) == jax.tree.structure(in_turn)
    assert bool(jax.tree.leaves(loop[0][1][1:])) == train
    for ours, theirs in zip(jax.tree.leaves(loop), jax.tree.leaves(in_turn), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_program_does_not_grow_with_the_repetitions(chain):
    def loops(count):
        net, h, xs = StatefulNetwork(Chain(count)), chain[2], [chain[3][0]] * count
        params = jax.eval_shape(net.init, jax.random.key(0), h, xs)
        return str(jax.make_jaxpr(functools.partial(net.apply, train=True))(params, h, xs)).count("scan[")

    assert [loops(count) for count in (2, 3, 9)] == [0, 1, 1]


def test_every_repetition_has_its_own_dropout():
    class Masks(nn.Module):
        @nn.compact
        def __call__(self, ones):
            return repeat(
                lambda modules, h, _: (h, modules[0](ones)),
                [[nn.Dropout(0.5, deterministic=False)] for _ in range(4)],
                ones,
                [None] * 4,
            )[1]

    masks = Masks().apply({}, jnp.ones((64,)), rngs={"dropout": jax.random.key(0)})
    assert len({mask.tobytes() for mask in map(np.asarray, masks)}) == 4


def test_neighbours_of_different_shapes_are_different_loops():
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, h, xs):
            def apply(modules, h, x):
                return modules[0](jnp.concatenate([h, x], axis=-1)), None

            return repeat(apply, [[nn.Dense(4)] for _ in xs], h, xs)[0]

    h, xs = jnp.ones((2, 6)), [jnp.full((2, width), 0.1 * width) for width in (4, 6, 6, 6, 3, 3, 3, 3)]
    params = Wide().init(jax.random.key(0), h, xs)
    loop, in_turn = both(lambda xs: Wide().apply(params, h, xs), xs)
    np.testing.assert_allclose(loop, in_turn, rtol=1e-5)
    assert str(jax.make_jaxpr(Wide().apply)(params, h, xs)).count("scan[") == 2


@pytest.mark.slow
def test_a_loop_saves_no_more_for_the_gradient():
    """Elementwise operations are cheap to repeat; a scan would save the result of each."""
    net, h = StatefulNetwork(Chain(12)), jnp.zeros((16, 32, 32, 4))
    xs = [jnp.zeros((16, 1, 1, 4))] * 12
    params = jax.eval_shape(net.init, jax.random.key(0), h, xs)

    def loss(params):
        return jnp.sum(net.apply(params, h, xs, train=True)[0][0] ** 2)

    def temporaries():
        lowered = jax.jit(lambda params: jax.grad(loss)(params)).lower(params)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    loop = temporaries()
    with written_out():
        in_turn = temporaries()
    assert loop < 1.1 * in_turn
