"""The penalties on the weights of NVAE and NCSN++."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from lsgm_jax.interop.ncsnpp import ncsnpp_table, ncsnpp_variables
from lsgm_jax.interop.nvae import nvae_variables, table
from lsgm_jax.objectives import regularisers
from tests.parity.cld import channels_last
from tests.parity.nvae import nvae_module
from tests.parity.scores import image_side, lsgm_net


def check_regularisers(fixture):
    # Weights are float32 values: there is nothing to round, so no output can move.
    if fixture.slack == {}:
        return fixture.leave(fixture.outputs())
    h = fixture.spec["hyper_parameters"]
    state = {key.removeprefix("param/"): a for key, a in fixture.arrays.items() if key.startswith("param/")}
    params, kernels, names = vae(fixture, h, state) if h["which"] == "vae" else score_net(h, state)
    params = jax.tree.map(functools.partial(jnp.asarray, dtype=jnp.zeros(()).dtype), params)
    penalty = jax.jit(jax.value_and_grad(spectral(fixture, kernels), has_aux=True))
    for iterations in h["power_iterations"]:
        (total, aux), gradient = penalty(params, iterations)
        check_spectral(fixture, total, aux.each, gradient, names, iterations)
    check_exact(fixture, aux.matrices)
    check_scales(fixture, params, names)


def vae(fixture, h, state):
    """Parameters, the effective kernels that they make by layer, and the official name of each parameter's path."""
    module, x = nvae_module(h["vae"], state), channels_last(fixture.input("in/x"))
    variables = nvae_variables(state, module, x.shape[1:])
    names = {entry.path[1:]: entry.official for entry in table(module) if entry.path[0] == "params"}
    noises = tuple(jnp.zeros((len(x), *shape)) for shape in module.latent_shapes(x.shape[1:]))

    def kernels(params):
        collections = {"params": params, "batch_stats": variables["batch_stats"]}
        _, sown = module.apply(collections, x, noises, train=False, mutable=["kernels"])
        found = flatten_dict(sown["kernels"])
        return {layer_of(names[*path[:-1], "kernel"]): kernel for path, kernel in found.items()}

    return variables["params"], kernels, names


def score_net(h, state):
    h = h["dae"]
    side = image_side(h["dataset"]) // 2 ** (h["num_preprocess_blocks"] + h["num_latent_scales"] - 1)
    module, shape = lsgm_net(h), (side, side, h["num_input_channels"])
    entries = ncsnpp_table(module, shape)[0]
    names = {entry.path[1:]: entry.official for entry in entries if entry.path[0] == "params"}
    # A 1 x 1 convolution may be a dense layer of ours; the original's has four axes.
    convolutions = {path: layer_of(name) for path, name in names.items() if state[name].ndim == 4}

    def kernels(params):
        return {
            convolutions[path]: leaf for path, leaf in flatten_dict(params).items() if path in convolutions
        }

    return ncsnpp_variables(state, module, shape)["params"], kernels, names


def layer_of(name):
    return name.removesuffix(".weight")


class Aux(NamedTuple):
    each: jax.Array
    matrices: dict[str, jax.Array]


def spectral(fixture, kernels):
    """The penalty after some iterations; with it, each layer's share and matrix."""
    layers = fixture.spec["names"]["layers"]

    def penalty(params, iterations):
        matrices = {layer: regularisers.as_matrix(kernel) for layer, kernel in kernels(params).items()}
        assert set(matrices) == set(layers)
        # The first half-step computes v from u, so it may start anywhere.
        start = {
            layer: regularisers.SingularVectors(fixture.input(f"in/u/{layer}"), jnp.zeros(matrix.shape[1]))
            for layer, matrix in matrices.items()
        }
        total, moved = regularisers.spectral_penalty(matrices, start, iterations)
        each = jnp.stack([moved[layer].u @ matrices[layer] @ moved[layer].v for layer in layers])
        return total, Aux(each, matrices)

    return penalty


def check_spectral(fixture, total, each, gradient, names, iterations):
    name = f"spectral_norm_after_{iterations}_iterations"
    fixture.check_scaled(name, total)
    norms = {names[path]: np.linalg.norm(np.ravel(leaf)) for path, leaf in flatten_dict(gradient).items()}
    fixture.check_scaled(f"{name}_grad_norm", np.sqrt(sum(norm**2 for norm in norms.values())))
    per_parameter = f"{name}_grad_norms_per_parameter"
    # The original says -1 where a parameter takes no part; ours has a gradient of zero.
    reached = fixture.arrays[f"out/{per_parameter}"] >= 0.0
    found = [norms.get(parameter, 0.0) for parameter in fixture.spec["names"]["params"]]
    assert not np.any(np.asarray(found)[~reached])
    fixture.check_scaled(per_parameter, np.where(reached, np.asarray(found), -1.0))
    if f"{name}_per_layer" in fixture.outputs():
        fixture.check_scaled(f"{name}_per_layer", each)


def check_exact(fixture, matrices):
    exact = [np.linalg.norm(matrices[layer], 2) for layer in fixture.spec["names"]["layers"]]
    fixture.check_scaled("exact_largest_singular_value_per_layer", exact)
    fixture.check_scaled("exact_largest_singular_value_sum", sum(exact))
    if "spectral_norm_with_custom_conv_flag" in fixture.outputs():
        # Quirk: with this flag the original looks for a class of layers that the network does not have.
        fixture.check("spectral_norm_with_custom_conv_flag", regularisers.spectral_penalty({}, {}, 4)[0])


def check_scales(fixture, params, names):
    scales = {names[path]: leaf for path, leaf in flatten_dict(params).items() if path[-1] == "scale"}
    assert {layer_of(name) for name in scales} == set(fixture.spec["names"]["bn_layers"])
    penalty = lambda scales: regularisers.scale_penalty(list(scales.values()))
    value, gradient = jax.jit(jax.value_and_grad(penalty))(scales)
    fixture.check_scaled("bn_scale_regularizer", value)
    fixture.check_scaled(
        "bn_scale_regularizer_grad_norm", np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values()))
    )
    fixture.check("bn_scale_regularizer_layer_count", len(scales))


CHECKS = {"reg": check_regularisers}
