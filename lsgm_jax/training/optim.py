"""Optimisers and learning-rate schedules of the two stages."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from lsgm_jax.nn.network import Params

OTHERS = "prior"  # what checkpoints call the parts that are not named


def schedule(
    peak: float,
    final: float | None,
    warmup: int,
    steps: int,
    start: float = 0.0,
    decay_steps: int | None = None,
) -> optax.Schedule:
    """Learning rate: linear from `start` to `peak` over `warmup` steps, then a cosine to `final`, where it stays.

    Args:
        final: None for `peak`: constant after the warm-up.
        steps: length of the stage.
        decay_steps: when `final` is reached, counted from the stage's first step; None for its end.

    Raises:
        ValueError: for steps or a rate below zero, or a warm-up longer than the `decay_steps` that it is part of.
    """
    final = peak if final is None else final
    for name, value in {"learning_rate": peak, "final": final, "start": start, "warmup": warmup}.items():
        if value < 0:
            raise ValueError(f"{name}={value}: give a number that is not negative")
    if decay_steps is not None and decay_steps <= warmup:
        raise ValueError(
            f"decay_steps={decay_steps}: give more than the warmup={warmup} that they begin with"
        )
    end = steps if decay_steps is None else decay_steps
    return optax.warmup_cosine_decay_schedule(start, peak, min(warmup, end - 1), max(end, 2), final)


def adamax(
    *,
    steps: int,
    learning_rate: float,
    final: float | None = None,
    warmup: int = 100,
    start: float = 0.0,
    decay_steps: int | None = None,
    clip: float = 50.0,
    weight_decay: float = 0.0,
    eps: float = 1e-3,
) -> optax.GradientTransformation:
    """Adamax: the optimiser of LSGM's first stage.

    Args:
        steps: length of the stage.
        learning_rate: the peak of `schedule`, which takes `final`, `warmup`, `start` and `decay_steps` as well.
        clip: greatest norm of the gradient; 0 for no limit.
        weight_decay: times all parameters, is added to the gradient: a penalty on their squares.
    """
    rate = schedule(learning_rate, final, warmup, steps, start, decay_steps)
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(_clip(clip), decay, optax.adamax(rate, eps=eps))


def adam(
    *,
    steps: int,
    learning_rate: float,
    final: float | None = None,
    warmup: int = 100,
    start: float = 0.0,
    decay_steps: int | None = None,
    clip: float = 50.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam: with `b1=0.5` and `b2=0.9` the optimiser of LDM's first stages; other arguments as in `adamax`.

    Args:
        b1, b2: decay of the averages of the gradient and of its square.

    Raises:
        ValueError: if one of them is not in [0, 1).
    """
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name}={value}: an average needs a decay in [0, 1)")
    rate = schedule(learning_rate, final, warmup, steps, start, decay_steps)
    return optax.chain(_clip(clip), optax.adam(rate, b1=b1, b2=b2, eps=eps))


def adamw(
    *,
    steps: int,
    learning_rate: float,
    final: float | None = None,
    warmup: int = 100,
    start: float = 0.0,
    decay_steps: int | None = None,
    clip: float = 50.0,
    weight_decay: float = 1e-2,
    eps: float = 1e-8,
    decay_all: bool = False,
) -> optax.GradientTransformation:
    """AdamW; other arguments as in `adamax`. Its defaults are those of LDM's denoisers, but for `clip` and `decay_all`.

    Args:
        weight_decay: times the learning rate, is how much of a parameter is lost in a step.
        decay_all: whether biases, scales and mixing logits decay as well, as in the published runs.
    """
    rate = schedule(learning_rate, final, warmup, steps, start, decay_steps)
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
