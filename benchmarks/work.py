"""The convolutions and matrix products of a program, by shape, with how often each is computed."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from lsgm_jax.nn.convolution import KERNEL, MAPS, OUTPUT, multiply_adds
from lsgm_jax.nn.convolution_lowerings import Geometry

Shape = tuple[int, ...]
PASSES = ("forward", "input gradient", "kernel gradient", "")
CONVOLUTIONS = dict(zip((OUTPUT, MAPS, KERNEL), PASSES, strict=False))
# Besides convolutions and products; everything that is in neither is elementwise.
MOVEMENT = {
    *("broadcast_in_dim", "concatenate", "copy", "dynamic_slice", "dynamic_update_slice", "gather", "pad"),
    *("reshape", "rev", "scatter", "scatter-add", "slice", "split", "squeeze", "transpose"),
}


class Kind(NamedTuple):
    """A kind of layer.

    Attributes:
        layer: such as "3x3", "5x5 depthwise", "dot".
        passed: one of `PASSES`; "" where the program does not tell.
    """

    layer: str
    passed: str


class Operation(NamedTuple):
    """A convolution or matrix product of certain shapes.

    Attributes:
        call: computes it.
        inputs: shapes and dtypes of its arguments.
        flops: two per multiply-add; zeros that a stride puts into a gradient do not count.
    """

    kind: Kind
    call: Callable[..., Any]
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    flops: int


class Work(NamedTuple):
    """What a program computes. The body of a `while` counts once, and of branches the one with the most operations.

    Attributes:
        operations: with their counts; equal ones are one.
        others: equations of each kind besides ("elementwise", "reduction", "movement"), counted.
        written: numbers that these equations write, before any fusion.
    """

    operations: list[tuple[Operation, int]]
    others: Counter[str]
    written: Counter[str]

    def flops(self, wanted: Callable[[Kind], bool] = lambda kind: True) -> int:
        """Returns the operations of all wanted kinds."""
        return sum(operation.flops * count for operation, count in self.operations if wanted(operation.kind))


def work(function: Callable[..., Any], *arguments: Any) -> Work:
    """Traces a function for arguments, or for their shapes."""
    found: dict[str, Operation] = {}
    counts: Counter[str] = Counter()
    others: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for equation, times in _equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        name = equation.primitive.name
        if equation.primitive in CONVOLUTIONS or name in ("conv_general_dilated", "dot_general"):
            operation = _operation(equation)
            key = f"{name} {operation.inputs} {equation.params}"
            found.setdefault(key, operation)
            counts[key] += times
        else:
            kind = "movement" if name in MOVEMENT else "reduction" if "reduce" in name else "elementwise"
            others[kind] += times
            written[kind] += times * sum(math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars)
    return Work([(operation, counts[key]) for key, operation in found.items()], others, written)


def _equations(program: Any) -> Iterator[tuple[Any, int]]:
    """All equations that hold no program of their own, with how often they are computed."""
    for equation in program.eqns:
        inner = [_program(part) for part in jax.tree.leaves(equation.params, is_leaf=_is_program)]
        inner = [part for part in inner if part is not None]
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        if equation.primitive.name == "cond":
            inner = [max(inner, key=lambda part: sum(times for _, times in _equations(part)))]
        if not inner:
            yield equation, 1
        for part in inner:
            yield from ((each, times * more) for each, more in _equations(part))


def _program(value: Any) -> Any:
    program = getattr(value, "jaxpr", value)
    return program if hasattr(program, "eqns") else None


def _is_program(value: Any) -> bool:
    return _program(value) is not None


def _operation(equation: Any) -> Operation:
    inputs = tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars)
    output = equation.outvars[0].aval.shape

    def call(*arrays: jax.Array) -> Any:
        return equation.primitive.bind(*arrays, **equation.params)

    if equation.primitive in CONVOLUTIONS:
        flops = 2 * multiply_adds(equation.primitive, *inputs, **equation.params)
        kind = Kind(_layer(equation.params["geometry"], *inputs), CONVOLUTIONS[equation.primitive])
        return Operation(kind, call, inputs, flops)
    of_lax = equation.primitive.name == "conv_general_dilated"
    kind, flops = (_convolution if of_lax else _product)(equation.params, *inputs, output)
    return Operation(kind, call, inputs, flops)


def _layer(geometry: Geometry, first: Any, second: Any) -> str:
    """The kind of a convolution of the networks."""
    layer = "x".join(map(str, geometry.window)) + (" strided" if max(geometry.strides) > 1 else "")
    depthwise = geometry.groups == max(first.shape[3], second.shape[3])
    return layer + (" depthwise" if depthwise else " grouped") * (geometry.groups > 1)


def _convolution(params: dict[str, Any], maps: Any, kernel: Any, output: Shape) -> tuple[Kind, int]:
    """The kind of a convolution by `jax.lax`, or of a gradient, in which batch, inputs and outputs exchange roles."""
    numbers = params["dimension_numbers"]
    maps_axes, kernel_axes, output_axes = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    passed = PASSES[2] if maps_axes[0] else PASSES[1] if kernel_axes[0] < kernel_axes[1] else PASSES[0]
    sizes, axes = (output, output_axes) if passed == PASSES[2] else (kernel.shape, kernel_axes)
    layer = "x".join(str(sizes[axis]) for axis in axes[2:])
    strides = (*params["window_strides"], *params["lhs_dilation"], *params["rhs_dilation"])
    layer += " strided" if max(strides) > 1 else ""
    groups = max(params["feature_group_count"], params["batch_group_count"])
    if groups > 1:
        channels = maps.shape[maps_axes[0 if params["batch_group_count"] > 1 else 1]]
        layer += " depthwise" if groups == channels else " grouped"
    per_output = math.prod(kernel.shape) // kernel.shape[kernel_axes[0]]
    return Kind(layer, passed), 2 * math.prod(output) * per_output // math.prod(params["lhs_dilation"])


def _product(params: dict[str, Any], left: Any, right: Any, output: Shape) -> tuple[Kind, int]:
    (contracted, _), (batched, _) = params["dimension_numbers"]
    flops = 2 * math.prod(output) * math.prod(left.shape[axis] for axis in contracted)
    vector = min(math.prod(left.shape), math.prod(right.shape)) * 4 >= flops
    layer = "dot, batched" if batched else "dot"
    return Kind(f"{layer}, of vectors" if vector else layer, ""), flops
