"""Time grids of fixed steps, from 1 down to t_min."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lsgm_jax.processes.linear import Process, log_snr
from lsgm_jax.processes.matrices import Scalars

Nodes = Float[Array, "nodes"]
Index = Int[Array, ""]


@runtime_checkable
class Grid(Protocol):
    """A rule that places a fixed number of steps."""

    @property
    def steps(self) -> int:
        """The number of steps."""
        ...

    def times(self, process: Process, t_min: float) -> Nodes:
        """Returns decreasing times from 1 to t_min, [steps + 1]."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """Equal steps of time."""

    steps: int

    def __post_init__(self):
        _require_positive(self.steps)

    def times(self, process: Process, t_min: float) -> Nodes:
        """Returns decreasing times from 1 to t_min."""
        return jnp.linspace(1.0, t_min, self.steps + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadratic:
    """Steps that shrink linearly towards the data: CLD-SGM's quadratic striding."""

    steps: int

    def __post_init__(self):
        _require_positive(self.steps)

    def times(self, process: Process, t_min: float) -> Nodes:
        """Returns decreasing times from 1 to t_min."""
        return t_min + (1.0 - t_min) * jnp.linspace(1.0, 0.0, self.steps + 1) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSNR:
    """Equal steps of the log signal-to-noise ratio (Lu et al. 2022)."""

    steps: int

    def __post_init__(self):
        _require_positive(self.steps)

    def times(self, process: Process, t_min: float) -> Nodes:
        """Returns decreasing times from 1 to t_min."""
        first, last = _log_snr_at(process, 1.0), _log_snr_at(process, t_min)
        inner = time_of_log_snr(process, jnp.linspace(first, last, self.steps + 1)[1:-1])
        return _between(inner, t_min)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM:
    """Equal steps of (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5).

    Attributes:
        rho: a larger value places more steps near the data.
    """

    steps: int
    rho: float = 7.0

    def __post_init__(self):
        _require_positive(self.steps)
        if self.rho < 1.0:
            raise ValueError(f"rho={self.rho}: give a number of at least 1")

    def times(self, process: Process, t_min: float) -> Nodes:
        """Returns decreasing times from 1 to t_min."""
        first, last = (jnp.exp(-0.5 * _log_snr_at(process, t) / self.rho) for t in (1.0, t_min))
        inner = jnp.linspace(first, last, self.steps + 1)[1:-1]
        return _between(time_of_log_snr(process, -2.0 * self.rho * jnp.log(inner)), t_min)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Given decreasing times. The solver starts at the first and stops at the last; t_min is ignored."""

    values: tuple[float, ...]

    def __post_init__(self):
        pairs = zip(self.values, self.values[1:], strict=False)
        if len(self.values) < 2 or not all(1.0 >= a > b >= 0.0 for a, b in pairs):
            raise ValueError(f"values={self.values}: give at least two decreasing times between 1 and 0")

    @property
    def steps(self) -> int:
        """The number of steps, one less than that of times."""
        return len(self.values) - 1

    def times(self, process: Process, t_min: float) -> Nodes:
        """Returns the given times."""
        return jnp.asarray(self.values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Default:
    """Steps on the grid that suits the solver best (see `Method.grid`), by which a `Sampler` replaces it."""

    steps: int

    def __post_init__(self):
        _require_positive(self.steps)

    def times(self, process: Process, t_min: float) -> Nodes:
        """Refuses: without a solver there is no grid."""
        raise TypeError("the default grid is that of a solver: give it to a Sampler")


# Grids of a number of steps, by name.
GRIDS: dict[str, Callable[..., Grid]] = {
    "linear": Linear,
    "quadratic": Quadratic,
    "log_snr": LogSNR,
    "edm": EDM,
}


def time_of_log_snr(process: Process, value: Scalars) -> Scalars:
    """Returns the time of a given `log_snr`, which decreases with time, by bisection of log t from 1e-12 to 1."""

    def halve(_: Index, ends: tuple[Scalars, Scalars]) -> tuple[Scalars, Scalars]:
        low, high = ends
        middle = 0.5 * (low + high)
        too_early = log_snr(process, jnp.exp(middle)) > value
        return jnp.where(too_early, middle, low), jnp.where(too_early, high, middle)

    start = jnp.full_like(value, jnp.log(1e-12)), jnp.zeros_like(value)
    low, high = jax.lax.fori_loop(0, 60, halve, start)
    return jnp.exp(0.5 * (low + high))


def _log_snr_at(process: Process, t: float) -> Float[Array, ""]:
    return log_snr(process, jnp.asarray(t, float))


def _between(inner: Float[Array, "inner"], t_min: float) -> Nodes:
    """Adds both ends, exactly 1 and t_min."""
    one = jnp.ones(1, inner.dtype)
    return jnp.concatenate([one, inner, t_min * one])


def _require_positive(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps={steps}: give a positive number of steps")
