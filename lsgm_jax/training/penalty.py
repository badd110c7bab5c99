"""Spectral and scale penalties on weights (`objectives/regularisers.py`) as terms of a training loss."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lsgm_jax.arrays import Key, Params, Scalar
from lsgm_jax.nn.network import Aux
from lsgm_jax.nn.penalised import Penalised
from lsgm_jax.objectives.regularisers import (
    SingularVectors,
    as_matrix,
    first_vectors,
    scale_penalty,
    spectral_penalty,
)
from lsgm_jax.training.step import Context, Loss

Vectors = dict[str, SingularVectors]  # by layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalty:
    """The sum of the spectral and the scale penalty of one network, times a weight.

    Attributes:
        weight: 0 disables the penalty.
        spectral: False for the scale penalty alone, as in the published runs on CIFAR-10 for the score network, whose
            convolutions their spectral penalty did not cover.
        iterations: power iterations in each step.
        first_iterations: power iterations in the first step, which starts from random vectors.
    """

    weight: float = 0.0
    spectral: bool = True
    iterations: int = 4
    first_iterations: int = 40

    def __post_init__(self):
        if self.weight < 0.0:
            raise ValueError(f"weight={self.weight}: a penalty needs a weight of at least 0")
        for name in ("iterations", "first_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: the power method needs at least one")

    def first_vectors(self, weights: Penalised, key: Key) -> Vectors:
        """Returns random singular vectors for the first step; only the shapes of the weights are used."""
        matrices = {
            name: jax.eval_shape(as_matrix, kernel) for name, kernel in self._kernels(weights).items()
        }
        return first_vectors(key, {name: matrix.shape for name, matrix in matrices.items()})

    def __call__(self, weights: Penalised, vectors: Vectors, step: Int[Array, ""]) -> tuple[Scalar, Vectors]:
        """Returns the penalty in nats, and the singular vectors for the next step."""
        iterations = jnp.where(step == 0, self.first_iterations, self.iterations)
        matrices = {name: as_matrix(kernel) for name, kernel in self._kernels(weights).items()}
        spectral, vectors = spectral_penalty(matrices, vectors, iterations)
        return self.weight * (spectral + scale_penalty(weights.scales.values())), vectors

    def _kernels(self, weights: Penalised) -> Mapping[str, Any]:
        return weights.kernels if self.spectral else {}


def penalise(loss: Loss, penalties: Mapping[str, Penalty]) -> Loss:
    """Adds penalties to a loss, and each of them to its metrics.

    The loss passes the leading singular vectors from step to step in `Aux.memory`; `first_memory` returns the first.

    Args:
        loss: returns the weights of its networks in `Aux.penalised`.
        penalties: by the names of the networks.
    """
    active = _active(penalties)

    def penalised(params: Params, batch: Any, context: Context) -> tuple[Scalar, Aux]:
        value, aux = loss(params, batch, context)
        memory, metrics = {}, {}
        for name, penalty in active.items():
            penalty_value, memory[name] = penalty(aux.penalised[name], context.memory[name], context.step)
            metrics[f"{name}_penalty"] = penalty_value
        total = value + sum(metrics.values(), start=jnp.zeros(()))
        return total, aux._replace(metrics=aux.metrics | metrics, memory=memory)

    return penalised


def first_memory(
    loss: Loss, penalties: Mapping[str, Penalty], example: Any
) -> Callable[[Params, Key], dict[str, Vectors]]:
    """Returns a function of parameters and a key that makes the `Context.memory` of the first step.

    Args:
        loss: without penalties.
        penalties: by the names of the networks.
        example: a batch, or its shapes.
    """
    active = _active(penalties)

    def memory(params: Params, key: Key) -> dict[str, Vectors]:
        context = Context(key, jnp.zeros((), jnp.int32), params, ())
        weights = jax.eval_shape(loss, params, example, context)[1].penalised if active else {}
        keys = jax.random.split(key, max(len(active), 1))
        return {
            name: penalty.first_vectors(weights[name], k)
            for k, (name, penalty) in zip(keys, active.items(), strict=False)
        }

    return memory


def _active(penalties: Mapping[str, Penalty]) -> dict[str, Penalty]:
    return {name: penalty for name, penalty in penalties.items() if penalty.weight > 0.0}
