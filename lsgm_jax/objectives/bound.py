"""What every model learns from, and the terms in which it is scored."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lsgm_jax.arrays import Latents, PerSample, Scalar


class Batch(NamedTuple):
    """Samples of the data, [batch, ...]: images in [-1, 1], NHWC, or vectors; and what is known of each."""

    x: Latents
    condition: Any = None  # arrays [batch, ...], such as labels; see `conditional.Conditioning`


class Bound(NamedTuple):
    """The terms of a bound on -log p(x), per sample, nats: nelbo = reconstruction - entropy + cross_entropy."""

    reconstruction: PerSample
    entropy: PerSample
    cross_entropy: PerSample

    @property
    def nelbo(self) -> PerSample:
        """Negative evidence lower bound."""
        return self.reconstruction - self.entropy + self.cross_entropy


def bound_metrics(bound: Bound) -> dict[str, Scalar]:
    """Batch means of the terms of a bound, nats."""
    return {name: jnp.mean(value) for name, value in {**bound._asdict(), "nelbo": bound.nelbo}.items()}


class ODEBound(NamedTuple):
    """A bound on -log p(x) whose prior is integrated along the probability-flow ODE."""

    nelbo: PerSample  # nats
    log_weight: PerSample  # log p(x, z) - log q(z | x) of the draw, nats; the mean of its exponential is p(x)
    nfe: Int[Array, ""]  # evaluations of the network on the batch
    products: Int[Array, ""]  # of vectors with its Jacobian, on the batch
    success: Bool[Array, "batch"]  # whether the solver arrived
