"""Densities r(t) on [t_min, 1] from which training times are drawn.

Each is a quantile function with its density, so the loss weight is the plain ratio lambda(t) / r(t). A batch of
times is drawn by sending uniform numbers through the quantile: independent ones, or numbers that are spread evenly
over [0, 1), which leaves every single time with density r and takes noise from the average.
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
    """A probability density on [t_min, 1], by the length of time, or as `Timesteps` by a measure of its own."""

    @property
    def t_min(self) -> float:
        """Smallest time that can be drawn."""
        ...

    def quantile(self, process: Process, u: Times) -> Times:
        """Maps a uniform u in [0, 1) to a time with density r."""
        ...

    def density(self, process: Process, t: Times) -> Times:
        """r(t), integrating to one over [t_min, 1]."""
        ...


class Stratum(NamedTuple):
    """The share [draw / draws, (draw + 1) / draws) of [0, 1) that one of several repeated draws takes."""

    draw: int | Scalar = 0
    draws: int | Scalar = 1


Spread = Callable[[Key, int, Stratum], Times]


def independent(key: Key, batch: int, stratum: Stratum = Stratum()) -> Times:
    """`batch` independent uniform numbers in `stratum`."""
    return (stratum.draw + jax.random.uniform(key, (batch,))) / stratum.draws


def stratified(key: Key, batch: int, stratum: Stratum = Stratum()) -> Times:
    """`batch` uniform numbers in `stratum`, one in each of `batch` equal cells of it, in random order."""
    k_offset, k_order = jax.random.split(key)
    offsets = jax.random.uniform(k_offset, (batch,))
    return _one_per_cell(k_order, batch, offsets, stratum)


def equidistant(key: Key, batch: int, stratum: Stratum = Stratum()) -> Times:
    """`batch` uniform numbers at equal distances, in random order: VDM's "antithetic" times."""
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
    """Draws `batch` times from the density, spread over the batch and over repeated draws."""
    t = density.quantile(process, spread(key, batch, stratum))
    return jnp.clip(t, density.t_min, 1.0)  # the quantiles overshoot by rounding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """r(t) = 1 / (1 - t_min)."""

    t_min: float = 0.01

    def __post_init__(self):
        _check_t_min(self.t_min)

    def quantile(self, process: Process, u: Times) -> Times:
        """Linear in u."""
        return TimeUniform(self.t_min).quantile(u)

    def density(self, process: Process, t: Times) -> Times:
        """Constant."""
        return TimeUniform(self.t_min).density(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimal:
    """The density of least variance for a weighting, if data are Gaussian and the score is exact (O5).

    LSGM's r_ll, r_re and r_un are `Optimal` for `likelihood`, `reweighted` and `unweighted`. It exists for every
    weighting and every process; `proposals.py` holds the closed forms and the table for the rest.
    """

    weighting: Weighting = likelihood
    t_min: float = 0.01

    def __post_init__(self):
        _check_t_min(self.t_min)

    def quantile(self, process: Process, u: Times) -> Times:
        """Inverse of the distribution function."""
        return proposal(self.weighting, process, self.t_min).quantile(u)

    def density(self, process: Process, t: Times) -> Times:
        """Proportional to lambda(t) e(t)."""
        return proposal(self.weighting, process, self.t_min).density(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defensive:
    """Mostly `Optimal`, a share `Uniform`: near-optimal and not heavy-tailed.

    The optimal density presumes an error that vanishes as t -> 1. A trained network's does not, while
    w_ll / r_ll grows in proportion to 1 / (1 - sigma^2), by a factor of 2e4 for the usual VPSDE: times that are
    almost never drawn decide the loss. The uniform share bounds the ratio by lambda / share (defensive importance
    sampling, Hesterberg 1995; O8). For the geometric VPSDE both parts are the same.
    """

    weighting: Weighting = likelihood
    t_min: float = 0.01
    uniform_share: float = 0.1

    def __post_init__(self):
        _check_t_min(self.t_min)
        if not 0.0 < self.uniform_share < 1.0:
            raise ValueError(f"uniform_share={self.uniform_share}: a share lies between 0 and 1")

    def quantile(self, process: Process, u: Times) -> Times:
        """`u` below the share drives the uniform part and u above it the other: a map from uniform u to times."""
        optimal, uniform = self._parts()
        share = self.uniform_share
        rest = jnp.maximum(u - share, 0.0) / (1.0 - share)
        return jnp.where(u < share, uniform.quantile(process, u / share), optimal.quantile(process, rest))

    def density(self, process: Process, t: Times) -> Times:
        """The mixture of the two densities."""
        optimal, uniform = self._parts()
        share = self.uniform_share
        return share * uniform.density(process, t) + (1.0 - share) * optimal.density(process, t)

    def _parts(self) -> tuple[Optimal, Uniform]:
        return Optimal(weighting=self.weighting, t_min=self.t_min), Uniform(t_min=self.t_min)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timesteps:
    """The nodes t = 1/steps, 2/steps, ..., 1, equally likely: DDPM's timesteps 0 to steps - 1.

    Its density is one by the measure that puts 1/steps on every node, by which integrals over time are sums. So a loss
    is the mean over timesteps of its weighted error, and the sum of a bound's integrand bounds nothing: scoring draws
    its times from [1/steps, 1] all the same, and asks the network between its nodes (O17).

    Raises:
        ValueError: for fewer than two steps.
    """

    steps: int = 1000

    def __post_init__(self):
        if self.steps < 2:
            raise ValueError(f"steps={self.steps}: give at least two")

    @property
    def t_min(self) -> float:
        """The first node."""
        return 1.0 / self.steps

    def quantile(self, process: Process, u: Times) -> Times:
        """The node at the end of the step that u falls in."""
        return jnp.minimum(jnp.floor(u * self.steps) + 1.0, self.steps) / self.steps

    def density(self, process: Process, t: Times) -> Times:
        """One."""
        return jnp.ones_like(t)


def _check_t_min(t_min: float) -> None:
    if not 0.0 <= t_min < 1.0:
        raise ValueError(f"t_min={t_min}: times lie in [0, 1)")
