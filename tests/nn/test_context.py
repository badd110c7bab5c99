"""Networks conditioned on the mean token of a context; freshly initialised, they equal the unconditional ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.nn.dit import DiT
from lsgm_jax.nn.mlp import MLP
from lsgm_jax.nn.ncsnpp import NCSNpp
from lsgm_jax.nn.unet import UNet
from tests import tiny

NETS = {
    "unet": (UNet(3, (8,), 1, (), 0.0), (4, 4, 5)),
    "ncsnpp": (NCSNpp(3, 8, (1,), 1, (), 0.0), (4, 4, 5)),
    "dit": (DiT(3, width=8, depth=1, heads=2), (4, 4, 5)),
    "mlp": (MLP(3, (8, 8)), (5,)),
    "mlp_linear": (MLP(3, ()), (5,)),
}
WIDTH = 6  # of a context token


def inputs_of(name, batch=1):
    z_t = jax.random.normal(jax.random.key(0), NETS[name][1])
    return jnp.broadcast_to(z_t, (batch, *z_t.shape)), jnp.full(batch, 0.3)


def drawn(name):
    """Draws non-zero parameters of the network without a context."""
    init = functools.partial(NETS[name][0].init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs_of(name))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def applied(name):
    return jax.jit(
        lambda params, *inputs: NETS[name][0].apply({"params": params}, *inputs, deterministic=True)
    )


@pytest.mark.parametrize("name", NETS)
def test_a_fresh_network_equals_the_unconditional_one(name):
    """Outputs are equal bit for bit for any context, and all other parameters are equal.

    The gradient of the context's kernel is non-zero, so that it can learn.
    """
    init, inputs = jax.jit(functools.partial(NETS[name][0].init, deterministic=True)), inputs_of(name)
    context = 1e3 * jax.random.normal(jax.random.key(1), (1, 2, WIDTH))
    fresh, before = (
        dict(init(jax.random.key(0), *given)["params"]) for given in ((*inputs, context), inputs)
    )
    new = fresh.pop("context")
    tiny.assert_trees_equal(fresh, before)
    apply, trained = applied(name), drawn(name)
    conditional = {**trained, "context": new}
    np.testing.assert_array_equal(apply(conditional, *inputs, context), apply(trained, *inputs))
    slope = jax.grad(lambda p: jnp.sum(apply(p, *inputs, context) ** 2))(conditional)
    assert np.abs(slope["context"]["kernel"]).min() > 0.0


@pytest.mark.parametrize("name", NETS)
def test_the_output_depends_on_the_context_only_through_the_mean_token(name, x64):
    """Order and spread of the tokens do not matter; a mean of zero equals no context. Every output depends on it."""
    mean, other, apart = jax.random.normal(jax.random.key(1), (3, WIDTH))
    tokens = [(mean + apart, mean - apart), (mean - apart, mean + apart), (mean, mean), (apart, -apart)]
    context = jnp.asarray([*tokens, (other, other)])
    params, apply = drawn(name), applied(name)
    kernel = jax.random.normal(jax.random.key(2), (WIDTH, params_width(name, context)))
    eps = apply({**params, "context": {"kernel": kernel}}, *inputs_of(name, len(context)), context)
    np.testing.assert_allclose(eps[1:3], eps[:1].repeat(2, axis=0), rtol=1e-10)
    np.testing.assert_allclose(eps[3], apply(params, *inputs_of(name))[0], rtol=1e-10)
    for left, right in ((0, 3), (0, 4), (3, 4)):
        assert np.abs(eps[left] - eps[right]).min() > 1e-6


def params_width(name, context):
    """Returns the width of the features that the context shifts."""
    init = functools.partial(NETS[name][0].init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs_of(name, len(context)), context)
    return shapes["params"]["context"]["kernel"].shape[-1]
