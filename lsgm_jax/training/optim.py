"""Optimisers and learning-rate schedules of the two stages."""

import jax
import jax.numpy as jnp
import optax

from lsgm_jax.models.network import Params


def schedule(peak: float, final: float, warmup: int, steps: int) -> optax.Schedule:
    """Learning rate: linear from 0 to `peak` over `warmup` steps, then a cosine to `final` at `steps`."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, min(warmup, steps - 1), max(steps, 2), final)


def adamax(
    *, steps: int, learning_rate: float, final: float, warmup: int = 100, clip: float = 50.0
) -> optax.GradientTransformation:
    """Adamax with eps 1e-3 and a clipped gradient norm: the optimiser of LSGM's first stage.

    Args:
        steps: length of the stage, at whose end the learning rate is `final`.
        clip: greatest norm of the gradient.
    """
    rate = schedule(learning_rate, final, warmup, steps)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamax(rate, eps=1e-3))


def adamw(
    *,
    steps: int,
    learning_rate: float,
    final: float,
    warmup: int = 100,
    clip: float = 50.0,
    weight_decay: float = 1e-2,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """AdamW with a clipped gradient norm; arguments as in `adamax`. Biases, scales and mixing logits do not decay."""
    rate = schedule(learning_rate, final, warmup, steps)
    decayed = optax.adamw(rate, eps=eps, weight_decay=weight_decay, mask=_is_matrix)
    return optax.chain(optax.clip_by_global_norm(clip), decayed)


def per_part(
    vae: optax.GradientTransformation, prior: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimiser for params["vae"], one for everything else: the prior."""

    def label(params: Params) -> Params:
        return {name: "vae" if name == "vae" else "prior" for name in params}

    return optax.multi_transform({"vae": vae, "prior": prior}, label)


def _is_matrix(params: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)
