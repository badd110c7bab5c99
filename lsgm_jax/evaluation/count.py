"""Parameters and floating-point operations of a model, from shapes alone: nothing is allocated."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lsgm_jax.diffusions.linear import sample_prior
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.vae import Batch
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


def describe(model: LSGM, optimiser: optax.GradientTransformation, batch_size: int) -> dict[str, Any]:
    """What `lsgm params` prints; operations are per image, the training step's at the run's batch size."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key)
    x = jax.ShapeDtypeStruct((1, *model.vae.image_shape), jnp.float32)
    z_t = jax.eval_shape(lambda key: sample_prior(model.process, key, (1, *model.vae.latent_shape)), key)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    batch = jax.eval_shape(lambda: Batch(jnp.zeros((batch_size, *model.vae.image_shape))))
    step = make_step(model.loss, optimiser, optax.constant_schedule(1.0), ema_decay=0.9999)
    state = jax.eval_shape(lambda params: create_state(params, optimiser), params)

    def reconstruct(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        return model.vae.autoencode(params, x, key, train=False).reconstruction

    return {
        "parameters": {
            "autoencoder": count_parameters(params["vae"]),
            "score_net": count_parameters([params["score_net"], params["mixing_logit"]]),
        },
        "latent_shape": list(model.vae.latent_shape),
        "flops_per_image": {
            "autoencoder": flops(reconstruct, params["vae"], x, key),
            "score_net": flops(lambda p, z, t: model.eps_net(p)(z, t), params, z_t, t),
            "train_step": flops(step, state, batch, key) // batch_size,
        },
    }
