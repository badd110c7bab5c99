"""The KL term of a hierarchical encoder: its schedule and its balance over groups of latents (NVAE, LSGM appendix)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lsgm_jax.arrays import Latents, PerSample, Scalar, mean_over_devices

PerGroup = Float[Array, "batch groups"]
Coefficients = Float[Array, "groups"]


class KLWeight(NamedTuple):
    """How the loss of one step weighs KL(q || p).

    Attributes:
        coefficient: of the whole.
        balanced: whether groups are weighed by what they hold as well, while the coefficient is below one.
    """

    coefficient: float | Scalar = 1.0
    balanced: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLSchedule:
    """The KL coefficient over a stage: `start` for `constant` steps, then linear to `end` over the next `steps`.

    Attributes:
        balanced: see `KLWeight`.
    """

    start: float = 0.7
    end: float = 1.0
    constant: int = 0
    steps: int = 1000
    balanced: bool = False

    def __post_init__(self):
        if min(self.start, self.end) < 0.0:
            raise ValueError(f"start={self.start}, end={self.end}: a KL coefficient is at least 0")
        if min(self.constant, self.steps) < 0:
            raise ValueError(f"constant={self.constant}, steps={self.steps}: give numbers of steps")

    def __call__(self, step: ArrayLike) -> KLWeight:
        """At a step, the first of which is 0."""
        progress = (jnp.asarray(step) - self.constant) / max(self.steps, 1)
        value = self.start + (self.end - self.start) * jnp.clip(progress, 0.0, 1.0)
        return KLWeight(value, self.balanced)


def weigh(divergence: PerGroup, kl: KLWeight, groups_per_scale: tuple[int, ...]) -> PerSample:
    """The divergences of all groups, weighed and summed, nats.

    Args:
        groups_per_scale: see `relative_sizes`.
    """
    coefficient = jnp.asarray(kl.coefficient, divergence.dtype)
    if not kl.balanced:
        return coefficient * jnp.sum(divergence, axis=1)
    balanced = balance(divergence, relative_sizes(groups_per_scale))
    return coefficient * jnp.sum(jnp.where(coefficient < 1.0, balanced, 1.0) * divergence, axis=1)


def sum_per_group(values: Latents, groups: int) -> PerGroup:
    """Sums over each of `groups` equal shares of the channels, the last axis, and over all axes between.

    Raises:
        ValueError: if the channels cannot be divided so.
    """
    if values.shape[-1] % groups:
        raise ValueError(f"{values.shape[-1]} channels cannot be divided into {groups} groups")
    split = values.reshape(values.shape[0], -1, groups, values.shape[-1] // groups)
    return jnp.sum(split, axis=(1, 3))


def balance(kl: PerGroup, sizes: Coefficients) -> Coefficients:
    """Coefficients with mean one that weigh a group by what it holds, per unit of `sizes`; no gradient.

    A group that holds little is penalised little, so that none is emptied while the KL coefficient grows.

    Args:
        kl: KL divergence of every image and group, nats.
        sizes: what a group is expected to hold; see `relative_sizes`.
    """
    mean = mean_over_devices(jnp.mean(jnp.abs(jax.lax.stop_gradient(kl)), axis=0))
    held = (mean + 0.01) / sizes
    return held / jnp.mean(held)


def relative_sizes(groups_per_scale: tuple[int, ...]) -> Coefficients:
    """Pixels of each group's scale over the scale's number of groups, the least being one.

    Args:
        groups_per_scale: from the smallest scale to the largest, each twice as wide as the one before.
    """
    sizes = jnp.concatenate(
        [jnp.full(count, 4.0**scale / count) for scale, count in enumerate(groups_per_scale)]
    )
    return sizes / jnp.min(sizes)
