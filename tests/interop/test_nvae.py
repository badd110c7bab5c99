"""The table between LSGM's state dict of an NVAE and our variables."""

import dataclasses

import jax
import numpy as np
import pytest

from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.nvae import nvae_state, nvae_variables, table
from tests.autoencoders.test_nvae import IMAGE, TINY, drawn, shapes_of


def test_variables_inverts_state():
    variables = drawn()[0]
    state = nvae_state(variables, TINY)
    back = nvae_variables(state, TINY, IMAGE)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert len(state) == len(jax.tree.leaves(variables))


@pytest.mark.parametrize(
    "fields",
    [
        dict(arch="res_bnswish", use_se=False),
        dict(scales=3, groups_per_scale=1, channel_mult=(1, 1, 2, 2), encoder_cells=2, decoder_cells=3),
        dict(scales=1, pre_blocks=2, post_blocks=2, pre_cells=3, post_cells=2, flows=0, input_skip=False),
    ],
)
def test_the_table_has_every_variable_once(fields):
    module = dataclasses.replace(TINY, **fields)
    leaves = jax.tree_util.tree_leaves_with_path(shapes_of(module, IMAGE))
    ours = {tuple(key.key for key in path) for path, _ in leaves}
    entries = list(table(module))
    assert {entry.path for entry in entries} == ours
    assert len({entry.official for entry in entries}) == len(entries) == len(ours)


def test_redundant_buffers_are_ignored():
    state = nvae_state(drawn()[0], TINY)
    counters = {
        key.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for key in state
        if key.endswith("running_mean")
    }
    nvae_variables(state | counters, TINY, IMAGE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"stem.extra": np.zeros(1)}, "tensors unknown: stem.extra$"),
        (lambda s: {k: v for k, v in s.items() if k != "stem.bias"}, "tensors missing: stem.bias$"),
        (lambda s: s | {"stem.bias": np.zeros(3)}, r"of another shape: stem.bias \(3,\), not \(4,\)$"),
        (lambda s: s | {"prior_ftr0": np.zeros(3)}, r"of another shape: prior_ftr0 \(3,\), not"),
        (
            lambda s: s | {"stem.log_weight_norm": s["stem.log_weight_norm"].reshape(1, 4, 1, 1)},
            r"stem.log_weight_norm \(1, 4, 1, 1\), not \(4, 1, 1, 1\)$",
        ),
        (lambda s: {}, r"tensors missing: .* and \d+ more$"),
    ],
)
def test_tensors_that_do_not_fit_are_named_in_one_line(change, message):
    state = nvae_state(drawn()[0], TINY)
    with pytest.raises(ConversionError, match=message) as error:
        nvae_variables(change(state), TINY, IMAGE)
    assert "\n" not in str(error.value)
