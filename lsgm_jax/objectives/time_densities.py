"""Densities r(t) on [t_min, 1] from which training times are drawn.

Each is a quantile function with its density, so the loss weight is the ratio lambda(t) / r(t). A batch of times is the
quantile of uniform numbers: independent ones, or numbers that are spread evenly over [0, 1). Every time then still has
density r, and the mean over the batch has a smaller variance.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Key, Scalar, Times
from lsgm_jax.objectives.proposals import TimeUniform, proposal
from lsgm_jax.objectives.weightings import Weighting, likelihood
from lsgm_jax.processes.linear import Process


@runtime_checkable
class TimeDensity(Protocol):
    """A probability density on [t_min, 1], with respect to the Lebesgue measure, or for `Timesteps` to another."""

    @property
    def t_min(self) -> float:
        """The smallest time that can be drawn."""
        ...

    def quantile(self, process: Process, u: Times) -> Times:
        """Maps a uniform u in [0, 1) to a time with density r."""
        ...

    def density(self, process: Process, t: Times) -> Times:
        """Returns r(t), which integrates to one over [t_min, 1]."""
        ...


class Stratum(NamedTuple):
    """The stratum [draw / draws, (draw + 1) / draws) of [0, 1) for one of several repeated draws."""

    draw: int | Scalar = 0
    draws: int | Scalar = 1


Spread = Callable[[Key, int, Stratum], Times]


def independent(key: Key, batch: int, stratum: Stratum = Stratum()) -> Times:
    """Draws `batch` independent uniform numbers in `stratum`."""
    return (stratum.draw + jax.random.uniform(key, (batch,))) / stratum.draws


def stratified(key: Key, batch: int, stratum: Stratum = Stratum()) -> Times:
    """Draws `batch` uniform numbers in `stratum`, one in each of `batch` equal cells, in random order."""
    k_offset, k_order = jax.random.split(key)
    offsets = jax.random.uniform(k_offset, (batch,))
    return _one_per_cell(k_order, batch, offsets, stratum)


def equidistant(key: Key, batch: int, stratum: Stratum = Stratum()) -> Times:
    """Draws `batch` uniform numbers at equal distances, in random order: VDM's "antithetic" times."""
    k_offset, k_order = jax.random.split(key)
    offsets = jnp.full(batch, jax.random.uniform(k_offset))
    return _one_per_cell(k_order, batch, offsets, stratum)


def _one_per_cell(key: Key, batch: int, offsets: Times, stratum: Stratum) -> Times:
    within = (jax.random.permutation(key, batch) + offsets) / batch
    return (stratum.draw + within) / stratum.draws


def sample_times(
    density: TimeDensity,
    process: Process,
    key: Key,
    batch: int,
    stratum: Stratum = Stratum(),
    spread: Spread = stratified,
) -> Times:
    """Draws `batch` times from the density.

    Args:
        stratum: part of [0, 1) for this draw, if a batch is drawn repeatedly.
        spread: the joint distribution of the uniform numbers of a batch.
    """
    t = density.quantile(process, spread(key, batch, stratum))
    return jnp.clip(t, density.t_min, 1.0)  # quantiles exceed the ends by rounding errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """The uniform density r(t) = 1 / (1 - t_min)."""

    t_min: float = 0.01

    def __post_init__(self):
        _check_t_min(self.t_min)

    def quantile(self, process: Process, u: Times) -> Times:
        """Returns times that are linear in u."""
        return TimeUniform(self.t_min).quantile(u)

    def density(self, process: Process, t: Times) -> Times:
        """Returns the constant density."""
        return TimeUniform(self.t_min).density(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimal:
    """The density that minimises the variance for a weighting, if data are Gaussian and the score is exact (O5).

    LSGM's r_ll, r_re and r_un are `Optimal` for `likelihood`, `reweighted` and `unweighted`. It exists for every
    weighting and every process; see `proposals.py` for the closed forms, and the table for all other pairs.
    """

    weighting: Weighting = likelihood
    t_min: float = 0.01

    def __post_init__(self):
        _check_t_min(self.t_min)

    def quantile(self, process: Process, u: Times) -> Times:
        """Returns the inverse of the distribution function at u."""
        return proposal(self.weighting, process, self.t_min).quantile(u)

    def density(self, process: Process, t: Times) -> Times:
        """Returns the density, proportional to lambda(t) e(t)."""
        return proposal(self.weighting, process, self.t_min).density(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defensive:
    """A mixture of `Optimal` and `Uniform`: defensive importance sampling (Hesterberg 1995; O8).

    The optimal density assumes an error that vanishes as t -> 1. The error of a trained network does not vanish, while
    w_ll / r_ll grows in proportion to 1 / (1 - sigma^2), by a factor of 2e4 for the usual VPSDE: times that are almost
    never drawn dominate the loss. The uniform component bounds the ratio by lambda / share. For the geometric VPSDE
    both components are equal.

    Attributes:
        uniform_share: weight of the uniform component.
    """

    weighting: Weighting = likelihood
    t_min: float = 0.01
    uniform_share: float = 0.1

    def __post_init__(self):
        _check_t_min(self.t_min)
        if not 0.0 < self.uniform_share < 1.0:
            raise ValueError(f"uniform_share={self.uniform_share}: a share lies between 0 and 1")

    def quantile(self, process: Process, u: Times) -> Times:
        """Maps u below the share by the quantile of the uniform component, and u above it by that of the other."""
        optimal, uniform = self._parts()
        share = self.uniform_share
        rest = jnp.maximum(u - share, 0.0) / (1.0 - share)
        return jnp.where(u < share, uniform.quantile(process, u / share), optimal.quantile(process, rest))

    def density(self, process: Process, t: Times) -> Times:
        """Returns the density of the mixture."""
        optimal, uniform = self._parts()
        share = self.uniform_share
        return share * uniform.density(process, t) + (1.0 - share) * optimal.density(process, t)

    def _parts(self) -> tuple[Optimal, Uniform]:
        return Optimal(weighting=self.weighting, t_min=self.t_min), Uniform(t_min=self.t_min)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timesteps:
    """The uniform distribution on t = 1/steps, 2/steps, ..., 1: DDPM's timesteps 0 to steps - 1.

    Its density is one with respect to the measure of mass 1/steps at every node, so a loss is the mean over timesteps
    of the weighted error. The sum over nodes of the integrand of a bound is no bound: likelihood evaluation therefore
    draws times from the interval [1/steps, 1], and evaluates the network between nodes (O17).

    Raises:
        ValueError: for fewer than two steps.
    """

    steps: int = 1000

    def __post_init__(self):
        if self.steps < 2:
            raise ValueError(f"steps={self.steps}: give at least two")

    @property
    def t_min(self) -> float:
        """The first node, 1/steps."""
        return 1.0 / self.steps

    def quantile(self, process: Process, u: Times) -> Times:
        """Returns the node at the end of the step that contains u."""
        return jnp.minimum(jnp.floor(u * self.steps) + 1.0, self.steps) / self.steps

    def density(self, process: Process, t: Times) -> Times:
        """Returns one."""
        return jnp.ones_like(t)


def _check_t_min(t_min: float) -> None:
    if not 0.0 <= t_min < 1.0:
        raise ValueError(f"t_min={t_min}: times lie in [0, 1)")
