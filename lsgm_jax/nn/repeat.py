"""Applies equal modules one after another as one loop, of which the compiler sees the body once.

Deep networks repeat a block eight or forty times at one resolution. Written out, each repetition is compiled by itself:
most of the time before the first training step. The parameters of every block keep their own names.
"""

import contextlib
import contextvars
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from lsgm_jax.nn.convolution import OUTPUT

# A loop of fewer blocks compiles little sooner, and stacks their parameters all the same.
FEWEST = 3
# What the backward pass finds instead of computing it again. "lt" are dropout masks, "remat2" outputs of a `Compute`
# with remat, which recomputes by itself.
SAVED = ("dot_general", "conv_general_dilated", "reduce_sum", "lt", "remat2")

_written_out = contextvars.ContextVar("_written_out", default=False)

Modules = Sequence[nn.Module]
Call = Callable[[Any, Any, Any], tuple[Any, Any]]  # (modules, carry, x) -> carry, y


@contextlib.contextmanager
def written_out() -> Iterator[None]:
    """Makes `repeat` write out what it repeats, for those who count the operations of a straight-line program."""
    token = _written_out.set(True)
    try:
        yield
    finally:
        _written_out.reset(token)


def repeat(call: Call, modules: Sequence[Modules], carry: Any, xs: Sequence[Any]) -> tuple[Any, list]:
    """Computes `carry, y = call(modules[i], carry, xs[i])` for each i in turn.

    Args:
        call: applies the modules of one repetition; it may read nothing else that changes from one to the next.
        modules: submodules of the calling module, equal but for their names and the shapes of their variables.
        carry: for the first repetition.
        xs: one input per repetition, a tree of arrays or None.

    Returns:
        The last carry, and all y.
    """
    initialising = not modules or modules[0][0].is_initializing()  # there are no variables yet
    if initialising or _written_out.get():
        return _in_turn(call, modules, carry, xs)
    ys = []
    alike = itertools.groupby(
        zip(modules, xs, strict=True), key=lambda one: _shapes([[m.variables for m in one[0]], one[1]])
    )
    for _, group in alike:
        run, inputs = zip(*group, strict=True)
        apply = _in_turn if len(run) < FEWEST else _in_a_loop
        carry, more = apply(call, run, carry, inputs)
        ys += more
    return carry, ys


def chain(modules: Sequence[nn.Module], carry: Any, *others: Any, **options: Any) -> Any:
    """Computes `carry = module(carry, *others, **options)` for each of equal modules in turn, by `repeat`."""

    def apply(alone: Modules, carry: Any, _: None) -> tuple[Any, None]:
        return cast(Any, alone[0])(carry, *others, **options), None

    return repeat(apply, [[module] for module in modules], carry, [None] * len(modules))[0]


def _shapes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _in_turn(call: Call, modules: Sequence[Modules], carry: Any, xs: Sequence[Any]) -> tuple[Any, list]:
    ys = []
    for module, x in zip(modules, xs, strict=True):
        carry, y = call(module, carry, x)
        ys.append(y)
    return carry, ys


def _in_a_loop(call: Call, modules: Sequence[Modules], carry: Any, xs: Sequence[Any]) -> tuple[Any, list]:
    """As `_in_turn`, as a scan over the stacked variables of the modules, their dropout keys and inputs."""
    mutable = [module.scope.mutable for module in modules[0] if module.scope is not None]
    loose = [module.unbind()[0] for module in modules[0]]

    def body(carry: Any, one: Any) -> tuple[Any, Any]:
        variables, keys, x = one
        bound = [
            module.bind(variables, rngs=keys, mutable=mutable)
            for module, variables, keys, mutable in zip(loose, variables, keys, mutable, strict=True)
        ]
        carry, y = call(bound, carry, x)
        return carry, (y, [_changed(module) for module in bound])

    each = [
        ([module.variables for module in one], [_keys(module) for module in one], x)
        for one, x in zip(modules, xs, strict=True)
    ]
    body = jax.checkpoint(body, policy=_saveable, prevent_cse=False)  # which a scan does anyway
    carry, results = jax.lax.scan(body, carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
    ys = []
    for index, one in enumerate(modules):
        y, changed = jax.tree.map(operator.itemgetter(index), results)
        ys.append(y)
        for module, collections in zip(one, changed, strict=True):
            _put(module, collections)
    return carry, ys


def _saveable(primitive: Any, *_: Any, **__: Any) -> bool:
    """Returns whether the backward pass finds a result of this primitive.

    A scan would save every value that a gradient needs. Written out, the compiler saves those of convolutions, products
    and sums, and fuses the cheap rest into what reads it.
    """
    return primitive.name in SAVED or primitive is OUTPUT


def _keys(module: nn.Module) -> dict[str, jax.Array]:
    return {"dropout": module.make_rng("dropout")} if module.has_rng("dropout") else {}


def _changed(module: nn.Module) -> dict[str, Any]:
    """The collections that the module may have changed."""
    return {name: tree for name, tree in module.variables.items() if module.is_mutable_collection(name)}


def _put(module: nn.Module, collections: dict[str, Any]) -> None:
    for collection, tree in collections.items():
        for name, value in tree.items():
            module.put_variable(collection, name, value)
