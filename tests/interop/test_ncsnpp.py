"""Variables and tensors correspond one to one; a state dict that does not fit is refused with the names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.ncsnpp import (
    lsgm_channel_mult,
    mixing_logit,
    mlp_variables,
    ncsnpp_state,
    ncsnpp_table,
    ncsnpp_variables,
)
from lsgm_jax.nn.mlp import MLP
from lsgm_jax.nn.ncsnpp import NCSNpp
from tests.nn.published import NETWORKS

MODULE = NCSNpp(
    out_channels=3,
    channels=8,
    channel_mult=(1, 2),
    blocks=1,
    attention=(8,),
    dropout=0.0,
    embedding="fourier",
    input_pyramid="residual",
)
SHAPE = (8, 8, 6)


@pytest.fixture(scope="module")
def variables():
    init = functools.partial(MODULE.init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.zeros(1))
    counter = iter(range(10**6))
    return jax.tree.map(
        lambda leaf: np.arange(np.prod(leaf.shape)).reshape(leaf.shape) + 0.5 * next(counter), shapes
    )


@pytest.mark.parametrize("name", ["lsgm_mnist", "lsgm_cifar10", "cld_cifar10"])
def test_a_table_names_every_variable_once(name):
    published = NETWORKS[name]
    table, expected = ncsnpp_table(published.module, published.shape)
    assert len({entry.official for entry in table}) == len(table)
    assert sorted(entry.path for entry in table) == sorted(flatten_dict(expected))


def test_variables_inverts_state(variables):
    back = ncsnpp_variables(ncsnpp_state(variables, MODULE, SHAPE), MODULE, SHAPE)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_tensors_that_do_not_fit_are_named_in_one_line(variables):
    state = ncsnpp_state(variables, MODULE, SHAPE)
    state["all_modules.99.weight"] = state.pop("all_modules.3.bias")
    state["all_modules.1.weight"] = state["all_modules.1.weight"][:5]
    with pytest.raises(ConversionError) as error:
        ncsnpp_variables(state, MODULE, SHAPE)
    assert str(error.value) == (
        "tensors missing: all_modules.3.bias; tensors unknown: all_modules.99.weight; "
        "tensors of another shape: all_modules.1.weight (5, 16), not (32, 16)"
    )


def test_long_lists_of_names_are_cut(variables):
    with pytest.raises(ConversionError, match=r"^tensors missing: (all_\S+, ){4}all_\S+ and \d+ more$"):
        ncsnpp_variables({}, MODULE, SHAPE)


def test_mixing_logits_are_read_apart_from_the_network(variables):
    state = ncsnpp_state(variables, MODULE, SHAPE) | {"mixing_logit": np.arange(3.0).reshape(1, 3, 1, 1)}
    ncsnpp_variables(state, MODULE, SHAPE)
    np.testing.assert_array_equal(mixing_logit(state), [0.0, 1.0, 2.0])
    with pytest.raises(ConversionError, match="missing: mixing_logit"):
        mixing_logit({})


def test_an_mlp_of_another_depth_is_refused():
    with pytest.raises(
        ConversionError, match=r"missing: main.2.weight, main.2.bias; .*main.0.weight \(2, 3\), not \(4, 3\)"
    ):
        mlp_variables({"main.0.weight": np.ones((2, 3)), "main.0.bias": np.ones(4)}, MLP(2, hidden=(4,)), 2)


def test_channel_multipliers_are_those_of_lsgm():
    assert lsgm_channel_mult("ffhq_256", 5) == (1, 1, 2, 2, 2)
    with pytest.raises(ValueError, match="scales=6 for 'ffhq_256': use one of 3, 4, 5"):
        lsgm_channel_mult("ffhq_256", 6)
