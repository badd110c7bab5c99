"""Optimisers and learning-rate schedules of the two stages."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from lsgm_jax.models.network import Params

OTHERS = "prior"  # what checkpoints call the parts that are not named


def schedule(peak: float, final: float, warmup: int, steps: int) -> optax.Schedule:
    """Learning rate: linear from 0 to `peak` over `warmup` steps, then a cosine to `final` at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, min(warmup, steps - 1), max(steps, 2), final)


def adamax(
    *,
    steps: int,
    learning_rate: float,
    final: float,
    warmup: int = 100,
    clip: float = 50.0,
    weight_decay: float = 0.0,
    eps: float = 1e-3,
) -> optax.GradientTransformation:
    """Adamax: the optimiser of LSGM's first stage.

    Args:
        steps: length of the stage, at whose end the learning rate is `final`.
        clip: greatest norm of the gradient; 0 for no limit.
        weight_decay: times all parameters, is added to the gradient: a penalty on their squares.
    """
    rate = schedule(learning_rate, final, warmup, steps)
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(_clip(clip), decay, optax.adamax(rate, eps=eps))


def adamw(
    *,
    steps: int,
    learning_rate: float,
    final: float,
    warmup: int = 100,
    clip: float = 50.0,
    weight_decay: float = 1e-2,
    eps: float = 1e-8,
    decay_all: bool = False,
) -> optax.GradientTransformation:
    """AdamW; other arguments as in `adamax`.

    Args:
        weight_decay: times the learning rate, is how much of a parameter is lost in a step.
        decay_all: whether biases, scales and mixing logits decay as well, as in the published runs.
    """
    rate = schedule(learning_rate, final, warmup, steps)
    mask = None if decay_all else _is_matrix
    return optax.chain(_clip(clip), optax.adamw(rate, eps=eps, weight_decay=weight_decay, mask=mask))


def per_part(
    optimisers: Mapping[str, optax.GradientTransformation], others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimiser for each top-level part of the parameters that is named, and one for all others together."""

    def label(params: Params) -> Params:
        return {name: name if name in optimisers else OTHERS for name in params}

    return optax.multi_transform({**optimisers, OTHERS: others}, label)


def _clip(norm: float) -> optax.GradientTransformation:
    if norm < 0.0:
        raise ValueError(f"clip={norm}: give the greatest norm of the gradient, or 0 for no limit")
    return optax.clip_by_global_norm(norm) if norm else optax.identity()


def _is_matrix(params: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)
