"""Penalties on weights (`objectives/regularisers.py`) as part of a training loss."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lsgm_jax.arrays import Key, Scalar
from lsgm_jax.nn.network import Aux, Params
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
    """Weight times the spectral and the scale penalty of one network.

    Attributes:
        weight: 0 for no penalty.
        spectral: False leaves the scales alone, as the published runs on CIFAR-10 have it for the score network, whose
            convolutions their penalty did not find.
        iterations: of the power method in every step.
        first_iterations: in the first step, which starts from random vectors.
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
        """What the first step starts from; of the weights the shapes suffice."""
        matrices = {
            name: jax.eval_shape(as_matrix, kernel) for name, kernel in self._kernels(weights).items()
        }
        return first_vectors(key, {name: matrix.shape for name, matrix in matrices.items()})

    def __call__(self, weights: Penalised, vectors: Vectors, step: Int[Array, ""]) -> tuple[Scalar, Vectors]:
        """The penalty, nats, and the vectors for the next step."""
        iterations = jnp.where(step == 0, self.first_iterations, self.iterations)
        matrices = {name: as_matrix(kernel) for name, kernel in self._kernels(weights).items()}
        spectral, vectors = spectral_penalty(matrices, vectors, iterations)
        return self.weight * (spectral + scale_penalty(weights.scales.values())), vectors

    def _kernels(self, weights: Penalised) -> Mapping[str, Any]:
        return weights.kernels if self.spectral else {}


def penalise(loss: Loss, penalties: Mapping[str, Penalty]) -> Loss:
    """The loss with penalties on its networks, by the names in `Aux.penalised`; each becomes a metric.

    The leading singular vectors are carried from step to step in `Aux.memory`, beginning with `first_memory`.
    """
    weighty = _weighty(penalties)

    def penalised(params: Params, batch: Any, context: Context) -> tuple[Scalar, Aux]:
        value, aux = loss(params, batch, context)
        memory, metrics = {}, {}
        for name, penalty in weighty.items():
            penalty_value, memory[name] = penalty(aux.penalised[name], context.memory[name], context.step)
            metrics[f"{name}_penalty"] = penalty_value
        total = value + sum(metrics.values(), start=jnp.zeros(()))
        return total, aux._replace(metrics=aux.metrics | metrics, memory=memory)

    return penalised


def first_memory(
    loss: Loss, penalties: Mapping[str, Penalty], example: Any
) -> Callable[[Params, Key], dict[str, Vectors]]:
    """What the penalties of `loss` find in the first step, as a function of the parameters' shapes and a key.

    Args:
        example: a batch, or its shapes.
    """
    weighty = _weighty(penalties)

    def memory(params: Params, key: Key) -> dict[str, Vectors]:
        context = Context(key, jnp.zeros((), jnp.int32), params, ())
        weights = jax.eval_shape(loss, params, example, context)[1].penalised if weighty else {}
        keys = jax.random.split(key, max(len(weighty), 1))
        return {
            name: penalty.first_vectors(weights[name], k)
            for k, (name, penalty) in zip(keys, weighty.items(), strict=False)
        }

    return memory


def _weighty(penalties: Mapping[str, Penalty]) -> dict[str, Penalty]:
    return {name: penalty for name, penalty in penalties.items() if penalty.weight > 0.0}
