"""Densities r(t) on [t_min, 1] from which training times are drawn.

Each is a quantile function with its density, so the loss weight is the plain ratio lambda(t) / r(t). The
quantiles take stratified uniform numbers, which leaves every single time with density r and spreads a
batch evenly over [t_min, 1].
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Key, Scalar, Times
from lsgm_jax.diffusions.linear import Process, variance


@runtime_checkable
class TimeDensity(Protocol):
    """A probability density on [t_min, 1]."""

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


def stratified(key: Key, batch: int, stratum: Stratum = Stratum()) -> Times:
    """`batch` uniform numbers in `stratum`, one in each of `batch` equal cells of it, in random order."""
    k_offset, k_order = jax.random.split(key)
    offsets = jax.random.uniform(k_offset, (batch,))
    within = (jax.random.permutation(k_order, batch) + offsets) / batch
    return (stratum.draw + within) / stratum.draws


def sample_times(
    density: TimeDensity, process: Process, key: Key, batch: int, stratum: Stratum = Stratum()
) -> Times:
    """Draws `batch` times from the density, stratified over the batch and over repeated draws."""
    t = density.quantile(process, stratified(key, batch, stratum))
    return jnp.clip(t, density.t_min, 1.0)  # the quantiles overshoot by rounding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """r(t) = 1 / (1 - t_min)."""

    t_min: float = 0.01

    def __post_init__(self):
        _check_t_min(self.t_min)

    def quantile(self, process: Process, u: Times) -> Times:
        """Linear in u."""
        return self.t_min + (1.0 - self.t_min) * u

    def density(self, process: Process, t: Times) -> Times:
        """Constant."""
        return jnp.full_like(t, 1.0 / (1.0 - self.t_min))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogVarianceUniform:
    """log sigma^2 uniform: r_ll of LSGM, the least-variance proposal of the likelihood weight (O5)."""

    t_min: float = 0.01

    def __post_init__(self):
        _check_t_min(self.t_min)

    def quantile(self, process: Process, u: Times) -> Times:
        """Time at which log sigma^2 has covered a share u of its range."""
        low, high = self._range(process, u)
        # Counted from the top: log sigma^2 nears 0 there, and rounding must not carry it past.
        return process.time_of_log_variance(high - (1.0 - u) * (high - low))

    def density(self, process: Process, t: Times) -> Times:
        """(d log sigma^2 / dt) / range."""
        low, high = self._range(process, t)
        return _log_variance_rate(process, t) / (high - low)

    def _range(self, process: Process, like: Times) -> tuple[Scalar, Scalar]:
        return (
            process.log_variance(jnp.asarray(self.t_min, like.dtype)),
            process.log_variance(jnp.ones((), like.dtype)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceUniform:
    """sigma^2 uniform: r_re of LSGM, the least-variance proposal of the reweighted loss (O6)."""

    t_min: float = 0.01

    def __post_init__(self):
        _check_t_min(self.t_min)

    def quantile(self, process: Process, u: Times) -> Times:
        """Time at which sigma^2 has covered a share u of its range."""
        low, high = self._range(process, u)
        value = low + u * (high - low)
        remainder = (1.0 - u) * (high - low) - jnp.expm1(process.log_variance(jnp.ones_like(u)))
        # Each form keeps its digits where the other has lost them.
        return process.time_of_log_variance(jnp.where(value < 0.5, jnp.log(value), jnp.log1p(-remainder)))

    def density(self, process: Process, t: Times) -> Times:
        """(d sigma^2 / dt) / range."""
        low, high = self._range(process, t)
        return _log_variance_rate(process, t) * variance(process, t) / (high - low)

    def _range(self, process: Process, like: Times) -> tuple[Scalar, Scalar]:
        return (
            variance(process, jnp.asarray(self.t_min, like.dtype)),
            variance(process, jnp.ones((), like.dtype)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defensive:
    """Mostly `LogVarianceUniform`, a share `Uniform`: near-optimal for the likelihood weight, not heavy-tailed.

    r_ll is optimal for the exact score, whose error vanishes as t -> 1. A trained network's does not, while
    w_ll / r_ll grows in proportion to 1 / (1 - sigma^2), by a factor of 2e4 for the usual VPSDE: times that are
    almost never drawn decide the loss. The uniform share bounds the ratio by w_ll / share (defensive importance
    sampling, Hesterberg 1995; O8). For the geometric VPSDE both parts are the same.
    """

    t_min: float = 0.01
    uniform_share: float = 0.1

    def __post_init__(self):
        _check_t_min(self.t_min)
        if not 0.0 < self.uniform_share < 1.0:
            raise ValueError(f"uniform_share={self.uniform_share}: a share lies between 0 and 1")

    def quantile(self, process: Process, u: Times) -> Times:
        """`u` below the share drives the uniform part and u above it the other: a map from uniform u to times."""
        proposal, uniform = self._parts()
        share = self.uniform_share
        rest = jnp.maximum(u - share, 0.0) / (1.0 - share)
        return jnp.where(u < share, uniform.quantile(process, u / share), proposal.quantile(process, rest))

    def density(self, process: Process, t: Times) -> Times:
        """The mixture of the two densities."""
        proposal, uniform = self._parts()
        share = self.uniform_share
        return share * uniform.density(process, t) + (1.0 - share) * proposal.density(process, t)

    def _parts(self) -> tuple[LogVarianceUniform, Uniform]:
        return LogVarianceUniform(t_min=self.t_min), Uniform(t_min=self.t_min)


def _check_t_min(t_min: float) -> None:
    if not 0.0 <= t_min < 1.0:
        raise ValueError(f"t_min={t_min}: times lie in [0, 1)")


def _log_variance_rate(process: Process, t: Times) -> Times:
    """Slope of log sigma^2. It equals 2 f + g^2 / sigma^2 by (D1), a difference that cancels as t -> 1."""
    return jax.jvp(process.log_variance, (t,), (jnp.ones_like(t),))[1]
