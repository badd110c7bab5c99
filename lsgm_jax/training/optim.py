"""Optimisers, each with its learning-rate schedule and gradient clipping."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from lsgm_jax.arrays import Params

OTHERS = "prior"  # label, in checkpoints, of the top-level parameters without an optimiser of their own


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Fields that all optimisers share: the learning-rate schedule and gradient clipping.

    Attributes:
        learning_rate: peak learning rate, reached at the end of the warm-up.
        final: learning rate at the end of the cosine decay; None for `learning_rate`, which is constant after warm-up.
        warmup: steps of linear warm-up.
        start: learning rate at step 0.
        decay_steps: step at which `final` is reached, warm-up included; None for the end of the stage.
        clip: maximum global norm of the gradient; 0 disables clipping.

    Raises:
        ValueError: for a negative value, or a warm-up that is not shorter than `decay_steps`.
    """

    learning_rate: float
    final: float | None = None
    warmup: int = 100
    start: float = 0.0
    decay_steps: int | None = None
    clip: float = 50.0

    def __post_init__(self):
        final = self.learning_rate if self.final is None else self.final
        rates = {"learning_rate": self.learning_rate, "final": final, "start": self.start}
        for name, value in (rates | {"warmup": self.warmup}).items():
            if value < 0:
                raise ValueError(f"{name}={value}: give a number that is not negative")
        if self.decay_steps is not None and self.decay_steps <= self.warmup:
            raise ValueError(
                f"decay_steps={self.decay_steps}: give more than the warmup={self.warmup} that they begin with"
            )
        if self.clip < 0.0:
            raise ValueError(f"clip={self.clip}: give the greatest norm of the gradient, or 0 for no limit")

    def schedule(self, steps: int) -> optax.Schedule:
        """Returns the learning rate as a function of the step: linear warm-up, cosine decay, then constant.

        Args:
            steps: length of the stage.
        """
        peak, end = self.learning_rate, steps if self.decay_steps is None else self.decay_steps
        final = peak if self.final is None else self.final
        return optax.warmup_cosine_decay_schedule(
            self.start, peak, min(self.warmup, end - 1), max(end, 2), final
        )

    def _clipping(self) -> optax.GradientTransformation:
        return optax.clip_by_global_norm(self.clip) if self.clip else optax.identity()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adamax(LearningRate):
    """Adamax, the optimiser of LSGM's first stage.

    Attributes:
        weight_decay: L2 regularisation: its product with each parameter is added to the gradient.
        eps: added to the denominator of the update.
    """

    weight_decay: float = 0.0
    eps: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        _refuse(self.eps, self.weight_decay)

    def __call__(self, steps: int) -> optax.GradientTransformation:
        """Builds the optimiser of a stage of this many steps."""
        decay = optax.add_decayed_weights(self.weight_decay)
        return optax.chain(self._clipping(), decay, optax.adamax(self.schedule(steps), eps=self.eps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(LearningRate):
    """Adam; with `b1=0.5` and `b2=0.9` the optimiser of LDM's first stages.

    Attributes:
        b1: decay rate of the first moment, in [0, 1).
        b2: decay rate of the second moment, in [0, 1).
        eps: added to the denominator of the update.

    Raises:
        ValueError: for a decay rate outside [0, 1), and as `LearningRate`.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self):
        super().__post_init__()
        for name, value in (("b1", self.b1), ("b2", self.b2)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name}={value}: give a decay rate in [0, 1)")
        _refuse(self.eps)

    def __call__(self, steps: int) -> optax.GradientTransformation:
        """Builds the optimiser of a stage of this many steps."""
        adam = optax.adam(self.schedule(steps), b1=self.b1, b2=self.b2, eps=self.eps)
        return optax.chain(self._clipping(), adam)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(LearningRate):
    """AdamW; its defaults are those of LDM's denoisers, except for `clip` and `decay_all`.

    Attributes:
        weight_decay: decoupled weight decay: its product with the learning rate is the fraction of each parameter
            removed in a step.
        eps: added to the denominator of the update.
        decay_all: applies weight decay to biases, scales and mixing logits too, as the published runs do; otherwise
            only to arrays of two or more axes.
    """

    weight_decay: float = 1e-2
    eps: float = 1e-8
    decay_all: bool = False

    def __post_init__(self):
        super().__post_init__()
        _refuse(self.eps, self.weight_decay)

    def __call__(self, steps: int) -> optax.GradientTransformation:
        """Builds the optimiser of a stage of this many steps."""
        mask = None if self.decay_all else _is_matrix
        adamw = optax.adamw(self.schedule(steps), eps=self.eps, weight_decay=self.weight_decay, mask=mask)
        return optax.chain(self._clipping(), adamw)


def _refuse(eps: float, weight_decay: float = 0.0) -> None:
    """Raises an error for a denominator that may be zero, and for a decay that is growth."""
    if eps <= 0.0:
        raise ValueError(f"eps={eps}: give a positive number, which the denominator of the update needs")
    if weight_decay < 0.0:
        raise ValueError(f"weight_decay={weight_decay}: give a number that is not negative")


def per_part(
    optimisers: Mapping[str, optax.GradientTransformation], others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Combines optimisers of the named top-level parts of the parameters with one for all other parts."""

    def label(params: Params) -> Params:
        return {name: name if name in optimisers else OTHERS for name in params}

    return optax.multi_transform({**optimisers, OTHERS: others}, label)


def _is_matrix(params: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)
