"""The benchmarks count what a program computes, and compare equal work alone."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import against_original, layers
from benchmarks.in_turns import Worker
from benchmarks.training_step import Planned
from benchmarks.work import PASSES, Kind, work
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.evaluation.model_size import multiply_add_flops
from lsgm_jax.nn.convolution import convolve
from tests import tiny

MATRIX = jax.ShapeDtypeStruct((4, 4), jnp.float32)
PRODUCT = 2 * 4**3


def by_lax(h, kernel, strides, padding, groups):
    return jax.lax.conv_general_dilated(
        h, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def conv_gradients(convolution, size, stride, groups):
    """A convolution of 8 to 8 channels, 16 x 16, with both gradients, and its multiply-adds."""
    h = jax.ShapeDtypeStruct((2, 16, 16, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((size, size, 8 // groups, 8), jnp.float32)
    conv = lambda h, kernel: jnp.sum(convolution(h, kernel, (stride,) * 2, "SAME", groups) ** 2)
    program = work(jax.value_and_grad(conv, (0, 1)), h, kernel)
    return program, 2 * 2 * (16 // stride) ** 2 * size**2 * 8 * 8 // groups


@pytest.mark.parametrize("convolution", [convolve, by_lax])
@pytest.mark.parametrize(
    ("size", "stride", "groups", "layer"),
    [
        *[(1, 1, 1, "1x1"), (3, 1, 1, "3x3"), (3, 2, 1, "3x3 strided"), (1, 2, 1, "1x1 strided")],
        *[(5, 1, 8, "5x5 depthwise"), (3, 2, 8, "3x3 strided depthwise"), (3, 1, 2, "3x3 grouped")],
    ],
)
def test_each_gradient_of_a_convolution_takes_as_many_operations_as_its_forward_pass(
    convolution, size, stride, groups, layer
):
    program, flops = conv_gradients(convolution, size, stride, groups)
    found = {operation.kind: count * operation.flops for operation, count in program.operations}
    assert found == {Kind(layer, passed): flops for passed in PASSES[:3]}


def test_operations_count_as_often_as_they_are_computed():
    def once(x):
        return x @ x

    def often(x):
        x, _ = jax.lax.scan(lambda x, _: (jax.checkpoint(once)(x), None), x, length=5)
        return jax.lax.cond(x[0, 0] > 0.0, lambda x: jax.jit(once)(once(x)), once, x)

    program = work(often, MATRIX)
    assert [count for _, count in program.operations] == [7]
    assert program.flops() == 7 * PRODUCT


def test_kinds_add_up_to_the_operations_of_a_network():
    net = tiny.model().prior.net
    h, t = jnp.ones((2, 4, 4, 2)), jnp.ones(2)
    params = jax.eval_shape(net.init, jax.random.key(0), h, t)
    program = work(net.apply, params, h, t)
    assert program.flops() == multiply_add_flops(net.apply, params, h, t)
    rows = layers.rows([(operation, count, 1.0) for operation, count in program.operations], per_call=1)
    assert sum(row["flops"] for row in rows) == program.flops()
    assert sum(row["seconds"] for row in rows) == sum(count for _, count in program.operations)


def test_an_operation_computes_what_the_program_does():
    program = work(lambda x, y: jnp.einsum("ij,kj->ik", x, y), MATRIX, MATRIX)
    (operation, _), *rest = program.operations
    x, y = jax.random.normal(jax.random.key(0), (2, 4, 4))
    assert not rest
    assert jnp.allclose(operation.call(x, y), x @ y.T, rtol=1e-6)


def test_a_step_is_measured_by_kind():
    planned = Planned(load_config(str(tiny.ROOT / "configs" / "cld_toy.py") + ":quick", []))
    found = layers.measure(planned, turns=1)
    program = work(planned.step, planned.like, *planned.arguments)
    assert sum(row["flops"] for row in found["rows"]) == program.flops()
    assert min(found["seconds"], found["peak"], *(row["seconds"] for row in found["rows"])) > 0.0
    described = {"config": "cld_toy", "overrides": [], "batch_size": 1, "devices": ""}
    text = layers.table(found | described)
    assert all(f"| {row['layer']} |" in text for row in found["rows"])


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("case", against_original.CASES.values(), ids=list(against_original.CASES))
def test_both_libraries_get_a_complete_config(case, quick):
    task = case.task(quick)
    planned = experiment(load_config(task["path"], task["overrides"]))
    assert planned.data.batch_size == task["config"]["data"]["batch_size"]
    if case.workload == "score_net":
        assert planned.model.prior.shape[-1] == task["shape"][-1]


def test_only_equal_work_is_compared():
    about = {"parameters": {"vae": 10}, "flops": 1000}
    against_original.require_equal_work(about, about | {"flops": 1009})
    with pytest.raises(ValueError, match="not 1"):
        against_original.require_equal_work(about, about | {"flops": 1020})
    with pytest.raises(ValueError, match="parameters differ"):
        against_original.require_equal_work(about, about | {"parameters": {"vae": 11}})


def test_workers_take_turns():
    program = (
        "from benchmarks.in_turns import serve\n"
        "serve(lambda task: ({'threads': task['threads']}, lambda: sum(range(100_000))))"
    )
    command = [sys.executable, "-c", program]
    with Worker(command, {}, threads=1) as first, Worker(command, {}, threads=2) as second:
        assert (first.about["threads"], second.about["threads"]) == (1, 2)
        least = against_original.alternate((first, second), turns=2, steps=3)
    assert all(min(turn) > 0.0 for turn in least)


def test_a_missing_library_is_named_in_one_line(capfd):
    if importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is here")
    command = [sys.executable, "-m", "benchmarks.in_torch.worker"]
    with pytest.raises(RuntimeError, match="ended"):
        Worker(command, {}, threads=1)
    assert capfd.readouterr().err.count("\n") == 1
