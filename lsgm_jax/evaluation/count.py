"""Parameters and floating-point operations of a model, from shapes alone: nothing is allocated."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsgm_jax.diffusions.linear import sample_prior
from lsgm_jax.models.bound import Batch
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.network import Params, trainable
from lsgm_jax.models.sgm import SGM
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import make_step


def count_parameters(tree: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of one call by XLA's cost analysis of the lowered, not yet optimised program.

    A multiply-add counts as two. Loops count once, so use it on straight-line programs.
    """
    cost = jax.jit(function).lower(*arguments).cost_analysis()
    return round(cost["flops"]) if cost else 0


def describe(model: LSGM | SGM, optimiser: optax.GradientTransformation, batch_size: int) -> dict[str, Any]:
    """What `lsgm params` prints.

    Parameters are those that are trained. Operations are per sample: of one forward pass of each network, and of the
    training step at the run's batch size.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key)
    z_t = jax.eval_shape(lambda key: sample_prior(model.process, key, (1, *model.latent_shape)), key)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    batch = jax.eval_shape(lambda: Batch(jnp.zeros((batch_size, *model.data_shape))))
    step = make_step(
        lambda params, batch, key, step: model.loss(params, batch, key), optimiser, ema_decay=0.9999
    )
    state = jax.eval_shape(lambda params: create_state(params, optimiser), params)
    vae, prior = params.get("vae", {}), {name: part for name, part in params.items() if name != "vae"}
    parameters = {"score_net": count_parameters(trainable(prior))}
    operations = {"score_net": flops(lambda p, z, t: model.eps_net(p)(z, t), params, z_t, t)}
    if isinstance(model, LSGM):
        parameters = {"autoencoder": count_parameters(trainable(vae)), **parameters}
        operations = {"autoencoder": _autoencoder_flops(model, vae, key), **operations}
    operations["train_step"] = flops(step, state, batch, key) // batch_size
    return {
        "parameters": parameters,
        "latent_shape": list(model.latent_shape),
        "flops_per_image": operations,
    }


def _autoencoder_flops(model: LSGM, params: Params, key: Any) -> int:
    x = jax.ShapeDtypeStruct((1, *model.data_shape), jnp.float32)
    return flops(
        lambda p, x, key: model.vae.autoencode(p, x, key, train=False).reconstruction, params, x, key
    )
