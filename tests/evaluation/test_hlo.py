"""What a compiled program does is counted: for a text with known figures, and programs with known operations."""

import jax
import jax.numpy as jnp
import pytest

from lsgm_jax.evaluation import hlo
from lsgm_jax.evaluation.model_size import flops_by_dtype, multiply_add_flops
from lsgm_jax.evaluation.roofline import CHIPS, bound

# Four devices in pairs. `S(1)` is the fast memory of a TPU.
TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inside (param_0: f32[8,16], param_1: bf16[16,16]) -> bf16[1,16] {
  %param_0 = f32[8,16]{1,0} parameter(0)
  %param_1 = bf16[16,16]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,16]{1,0} dynamic-slice(%param_0, %zero, %zero), dynamic_slice_sizes={1,16}
  %narrow = bf16[1,16]{1,0} convert(%row)
  ROOT %product = bf16[1,16]{1,0} dot(%narrow, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (carry: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %carry = (s32[], f32[8,16]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%carry), index=0
  %state = f32[8,16]{1,0} get-tuple-element(%carry), index=1
  %moved = f32[8,16]{1,0} collective-permute(%state), source_target_pairs={{0,1},{1,0}}
  ROOT %next = (s32[], f32[8,16]{1,0}) tuple(%count, %moved)
}

%condition (carry.1: (s32[], f32[8,16])) -> pred[] {
  %carry.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x: f32[8,16], w: bf16[16,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0:T(8,128)} parameter(0)
  %w = bf16[16,16]{1,0:T(8,128)(2,1)} parameter(1)
  %near = (f32[8,16]{1,0:T(8,128)S(1)}, f32[8,16]{1,0:T(8,128)}, u32[]) copy-start(%x)
  %here = f32[8,16]{1,0:T(8,128)S(1)} copy-done(%near)
  %fusion = bf16[1,16]{1,0:S(1)} fusion(%x, %w), kind=kOutput, calls=%inside, backend_config={"window_config":{"estimated_cycles":"700"}}
  %total = (f32[8,16]{1,0}, bf16[1,16]{1,0:S(1)}) all-reduce(%here, %fusion), replica_groups=[2,2]<=[4], to_apply=%add
  %summed = f32[8,16]{1,0} get-tuple-element(%total), index=0
  %whole = f32[32,16]{1,0} all-gather(%summed), replica_groups={{0,1,2,3}}, dimensions={0}
  %part = f32[8,16]{1,0} reduce-scatter(%whole), replica_groups={}, dimensions={0}, to_apply=%add
  %zero.1 = s32[] constant(0)
  %start = (s32[], f32[8,16]{1,0}) tuple(%zero.1, %part)
  %loop = (s32[], f32[8,16]{1,0}) while(%start), condition=%condition, body=%body{KNOWN}
  ROOT %out = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501
KNOWN = ', backend_config={"known_trip_count":{"n":"5"}}'
STATE, SMALL = 8 * 16 * 4, 16 * 2  # bytes


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("[2,8]<=[16]", 8),
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("mesh['a'=4,'b'=2,'c'=2] {'a','c'}", 8),
        ("mesh['a'=4,'b'=4] {'a':(1)2}", 2),
        ("{}", 16),
    ],
)
def test_every_way_to_write_groups_of_devices(groups, devices):
    assert hlo._group_size(f", replica_groups={groups}, to_apply=%add", 16) == devices


@pytest.mark.parametrize(("config", "given", "trips"), [(KNOWN, 3, 5), ("", 3, 3)], ids=["known", "given"])
def test_collectives_of_a_text(config, given, trips):
    found = hlo.tally(TEXT.replace("{KNOWN}", config), given)
    assert found.collectives == {
        "all-reduce": hlo.Traffic(1, STATE + SMALL, 1.0 * STATE + SMALL, 0),  # 2 (n - 1) / n of all, in pairs
        "all-gather": hlo.Traffic(1, 4 * STATE, 3.0 * STATE, 0),
        "reduce-scatter": hlo.Traffic(1, 4 * STATE, 3.0 * STATE, 0),
        "collective-permute": hlo.Traffic(trips, trips * STATE, 1.0 * trips * STATE, 1),
    }
    assert found.loops == [5 if config else None]


ASYNCHRONOUS = """HloModule jit_step, num_partitions=4

%begin (x.1: f32[8,16]) -> f32[32,16] {
  %x.1 = f32[8,16]{1,0} parameter(0)
  ROOT %gathered.1 = f32[32,16]{1,0} all-gather(%x.1), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%finish (x.2: f32[8,16]) -> f32[32,16] {
  %x.2 = f32[8,16]{1,0} parameter(0)
  ROOT %gathered.2 = f32[32,16]{1,0} all-gather(%x.2), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%all-reduce-scatter.3 (y: f32[32,16]) -> f32[8,16] {
  %y = f32[32,16]{1,0} parameter(0)
  %sum = f32[32,16]{1,0} all-reduce(%y), channel_id=8, replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %slice = f32[8,16]{1,0} dynamic-slice(%sum, %zero, %zero), dynamic_slice_sizes={8,16}
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %started = f32[32,16]{1,0} fusion(%x), kind=kCustom, calls=%begin
  %ended = f32[32,16]{1,0} fusion(%x), kind=kCustom, calls=%finish
  ROOT %out = f32[8,16]{1,0} fusion(%ended), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_fusions_of_a_tpu_show_a_collective_once():
    """An asynchronous gather stands in its first and its last fusion; a reduction of slices is named by its fusion."""
    assert hlo.tally(ASYNCHRONOUS).collectives == {
        "all-gather": hlo.Traffic(1, 4 * STATE, 3.0 * STATE, 0),
        "reduce-scatter": hlo.Traffic(1, 4 * STATE, 3.0 * STATE, 0),
    }


def test_memory_and_products_of_a_text():
    found = hlo.tally(TEXT.replace("{KNOWN}", KNOWN))
    assert found.products == {("dot", "bf16"): 1}
    assert (found.converts, found.copies, found.copy_bytes, found.cycles) == (1, 1, STATE, 700)
    # Copy, fusion (a row of x, and w), all-reduce to HBM, all-gather, reduce-scatter, five permutations.
    parts = (STATE, 64 + 512, STATE, 5 * STATE, 5 * STATE, 5 * 2 * STATE)
    assert found.hbm_bytes == sum(parts)


def test_loops_of_a_compiled_program():
    """A scan's trip count stands in the text; a loop that ends by a value has the given number."""

    def scanned(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, None, length=7)[0]

    def until(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1.0, lambda x: x @ x, x)

    x = jnp.eye(8)
    for function, trips in ((scanned, 7), (until, 11)):
        text = jax.jit(function).lower(x).compile().as_text()
        found = hlo.tally(text, unknown_trips=11)
        assert sum(found.products.values()) == trips
        assert flops_by_dtype(jax.make_jaxpr(function)(x).jaxpr, 11) == {"float32": trips * 2 * 8**3}


def test_flops_of_both_gradients_equal_those_of_the_convolution():
    """Also with a stride, where the gradient of the input has zeros between its inputs, and depthwise."""
    for channels, kernel, stride, groups in ((6, (3, 3, 6, 4), 2, 1), (6, (5, 5, 1, 6), 1, 6)):
        x, w = jnp.ones((2, 8, 8, channels), jnp.bfloat16), jnp.ones(kernel, jnp.bfloat16)

        def convolve(x, w, stride=stride, groups=groups):
            return jax.lax.conv_general_dilated(
                *(x, w, (stride, stride), "SAME"),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )

        forward = multiply_add_flops(convolve, x, w)
        y, pull = jax.vjp(convolve, x, w)
        assert forward == 2 * y.size * w.size // w.shape[-1]
        assert flops_by_dtype(jax.make_jaxpr(pull)(y).jaxpr) == {"bfloat16": 2 * forward}


def test_the_longest_of_three_bounds_a_program():
    chip = CHIPS["v5e"]
    for index, limit in enumerate(("compute", "memory", "links")):
        amounts = [chip.flops, chip.hbm_bandwidth, chip.ici_bandwidth]
        amounts[index] *= 2.0
        found = bound(chip, *amounts)
        assert (found.seconds, found.limit) == (2.0, limit)
