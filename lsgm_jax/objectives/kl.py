"""The KL term of a hierarchical encoder: its schedule and its balance over groups of latents (NVAE, LSGM appendix)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lsgm_jax.arrays import Latents, Scalar

PerGroup = Float[Array, "batch groups"]
Coefficients = Float[Array, "groups"]


def annealed(step: ArrayLike, *, start: float, end: float = 1.0, constant: int = 0, ramp: int) -> Scalar:
    """KL coefficient: `start` for `constant` steps, then linear to `end` over the next `ramp` steps."""
    value = start + (end - start) * (jnp.asarray(step) - constant) / max(ramp, 1)
    return jnp.clip(value, min(start, end), max(start, end))


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
    held = (jnp.mean(jnp.abs(jax.lax.stop_gradient(kl)), axis=0) + 0.01) / sizes
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
