"""Parameters and floating-point operations of a model, from shapes alone: nothing is allocated."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Params
from lsgm_jax.conditioning.protocol import encode_condition
from lsgm_jax.models.protocol import Model
from lsgm_jax.nn.convolution import KERNEL, MAPS, OUTPUT, multiply_adds
from lsgm_jax.nn.network import trainable
from lsgm_jax.nn.repeat import written_out
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.processes.linear import sample_prior
from lsgm_jax.training.stage import Stage
from lsgm_jax.training.step import make_step


def count_parameters(tree: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of one call by XLA's cost analysis of the lowered, not yet optimised program.

    A multiply-add counts as two. Loops count once, so use it on straight-line programs; those over equal blocks of a
    network are written out. On CPU the gradients of depthwise kernels are loops.
    """
    with written_out():
        cost = jax.jit(lambda *inputs: function(*inputs)).lower(*arguments).cost_analysis()
    return round(cost["flops"]) if cost else 0


def multiply_add_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of the convolutions and matrix products of one call, as papers count them: two per multiply-add.

    Other than `flops`, it includes multiplications by the zeros of the padding, and no elementwise operation.
    """
    return sum(flops_by_dtype(jax.make_jaxpr(function)(*arguments).jaxpr).values())


def flops_by_dtype(program: Any, unknown_trips: int = 1) -> Counter[str]:
    """Operations of the convolutions and matrix products of a program by the dtypes of their inputs.

    They are counted as in `multiply_add_flops`. The body of a scan counts as often as it runs. Zeros between the inputs
    of a convolution, as in the gradient of one with a stride, do not count.

    Args:
        program: a jaxpr.
        unknown_trips: how often a loop runs whose number of iterations depends on values; such a loop inside of another
            counts once.
    """
    total = Counter()
    for equation in program.eqns:
        name, params = equation.primitive.name, equation.params
        loop = name == "while"
        repeated = params["length"] if name == "scan" else unknown_trips if loop else 1
        for value in jax.tree.leaves(list(params.values())):
            part = getattr(value, "jaxpr", value)
            if hasattr(part, "eqns"):
                for dtype, count in flops_by_dtype(part, 1 if loop else unknown_trips).items():
                    total[dtype] += repeated * count
        if count := _multiply_adds(equation):
            dtypes = dict.fromkeys(str(operand.aval.dtype) for operand in equation.invars[:2])
            total["*".join(dtypes)] += 2 * count
    return total


def _multiply_adds(equation: Any) -> int:
    """Multiply-adds of a convolution or a matrix product; 0 for other operations."""
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel, outputs = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        products = equation.outvars[0].aval.size * math.prod(kernel) // kernel[outputs]
        return products // math.prod(params["lhs_dilation"])
    if equation.primitive in (OUTPUT, MAPS, KERNEL):
        return multiply_adds(equation.primitive, *(x.aval for x in equation.invars), **params)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return equation.outvars[0].aval.size * math.prod(
            equation.invars[0].aval.shape[axis] for axis in contracted
        )
    return 0


def describe(model: Model, stage: Stage, batch_size: int) -> dict[str, Any]:
    """Returns parameters and operations of a model, from shapes alone: the output of `lsgm params`.

    Parameters are those that are trained. Operations are per sample: those of one forward pass of each network as
    papers count them and by XLA (see `multiply_add_flops` and `flops`), and of the training step at the run's batch
    size by XLA.

    Args:
        stage: the last stage.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key)
    autoencoder = "" if model.autoencoder is None else model.stages[0]
    others = {autoencoder, "scale", "conditioner"}
    parts = {
        "autoencoder": params.get(autoencoder, {}),
        "score_net": {name: part for name, part in params.items() if name not in others},
        "conditioner": params.get("conditioner", {}),
    }
    parts = {name: part for name, part in parts.items() if part}
    batch = jax.eval_shape(lambda: Batch(jnp.zeros((batch_size, *model.data_shape))))
    step = make_step(stage.loss, stage.optimiser, stage.ema)
    state = jax.eval_shape(stage.first_state, params, key)
    forward = _forward_passes(model, params, key)
    return {
        "parameters": {name: count_parameters(trainable(part)) for name, part in parts.items()},
        "latent_shape": list(model.latent_shape),
        "multiply_add_flops_per_image": {name: multiply_add_flops(*call) for name, call in forward.items()},
        "flops_per_image": {name: flops(*call) for name, call in forward.items()}
        | {"train_step": flops(step, state, batch, key) // batch_size},
    }


def _forward_passes(model: Model, params: Params, key: Any) -> dict[str, tuple[Any, ...]]:
    """Each network with the shapes of its arguments."""
    prior, autoencoder = model.prior, model.autoencoder
    z_t = jax.eval_shape(lambda key: sample_prior(prior.process, key, (1, *model.latent_shape)), key)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)

    def predict(params: Params, z_t: Any, t: Any) -> jax.Array:
        context = encode_condition(prior.conditioning, params, None, 1)
        return prior.eps_net(params, context=context)(z_t, t)

    score_net = (predict, params, z_t, t)
    if autoencoder is None:
        return {"score_net": score_net}

    def reconstruct(params: Params, x: jax.Array, key: jax.Array) -> Any:
        return autoencoder.autoencode(params, x, key, train=False)[1]

    x = jax.ShapeDtypeStruct((1, *model.data_shape), jnp.float32)
    return {"autoencoder": (reconstruct, params[model.stages[0]], x, key), "score_net": score_net}
