"""The KL term of a hierarchical encoder: warm-up schedule, and balancing over groups (NVAE, LSGM appendix)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lsgm_jax.arrays import Latents, PerSample, Scalar, mean_over_devices

PerGroup = Float[Array, "batch groups"]
Coefficients = Float[Array, "groups"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KLWeight:
    """The weight of KL(q || p) in the loss of one step; a pytree whose leaf is the coefficient.

    Attributes:
        coefficient: of the total KL.
        balanced: whether groups are also weighed by their KL (KL balancing) while the coefficient is below one.
    """

    coefficient: float | Scalar = 1.0
    balanced: bool = dataclasses.field(default=False, metadata={"static": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLSchedule:
    """KL warm-up: the coefficient is `start` for `constant` steps, then linear to `end` over the next `steps`.

    Attributes:
        balanced: see `KLWeight`.

    Raises:
        ValueError: for a negative coefficient or number of steps.
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
        """Returns the weight at a step; steps count from 0."""
        progress = (jnp.asarray(step) - self.constant) / max(self.steps, 1)
        value = self.start + (self.end - self.start) * jnp.clip(progress, 0.0, 1.0)
        return KLWeight(value, self.balanced)


def weigh(divergence: PerGroup, kl: KLWeight, groups_per_scale: tuple[int, ...]) -> PerSample:
    """Returns the weighed sum of the divergences of all groups, nats per sample.

    Args:
        divergence: KL divergence of every sample and group, nats.
        kl: weight of the step.
        groups_per_scale: see `relative_sizes`.
    """
    coefficient = jnp.asarray(kl.coefficient, divergence.dtype)
    if not kl.balanced:
        return coefficient * jnp.sum(divergence, axis=1)
    balanced = balance(divergence, relative_sizes(groups_per_scale))
    return coefficient * jnp.sum(jnp.where(coefficient < 1.0, balanced, 1.0) * divergence, axis=1)


def sum_per_group(values: Latents, groups: int) -> PerGroup:
    """Sums over groups of channels (the last axis, in `groups` equal parts), and over all axes between.

    Raises:
        ValueError: if the number of channels is not a multiple of `groups`.
    """
    if values.shape[-1] % groups:
        raise ValueError(f"{values.shape[-1]} channels cannot be divided into {groups} groups")
    split = values.reshape(values.shape[0], -1, groups, values.shape[-1] // groups)
    return jnp.sum(split, axis=(1, 3))


def balance(kl: PerGroup, sizes: Coefficients) -> Coefficients:
    """Returns coefficients of the groups, with mean one and proportional to KL / size, without gradient.

    A group with a small KL gets a small penalty, so that no posterior collapses during warm-up.

    Args:
        kl: KL divergence of every image and group, nats.
        sizes: see `relative_sizes`.
    """
    mean = mean_over_devices(jnp.mean(jnp.abs(jax.lax.stop_gradient(kl)), axis=0))
    per_size = (mean + 0.01) / sizes
    return per_size / jnp.mean(per_size)


def relative_sizes(groups_per_scale: tuple[int, ...]) -> Coefficients:
    """Returns the pixels of a group's scale divided by the number of groups of the scale, relative to the smallest.

    Args:
        groups_per_scale: from the smallest scale to the largest, each twice as wide as the one before.
    """
    sizes = jnp.concatenate(
        [jnp.full(count, 4.0**scale / count) for scale, count in enumerate(groups_per_scale)]
    )
    return sizes / jnp.min(sizes)
