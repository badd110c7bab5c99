"""Optimal densities of training times: r(t) proportional to lambda(t) e(t) on [t_min, 1], e = `gaussian_error`.

For Gaussian data and the exact score, this density minimises the variance of the loss (O5), for any weighting and
process. The paper's closed forms of its quantile are classes here, each for the processes that `closed_form` lists;
`Table` covers all other pairs.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Scalar, Times
from lsgm_jax.objectives.weightings import Weighting, likelihood, rescaled, reweighted, unweighted
from lsgm_jax.processes.linear import Process, data_variance, gaussian_error, kernel, log_snr, sigma
from lsgm_jax.processes.schedules import is_concrete
from lsgm_jax.processes.ve import VE
from lsgm_jax.processes.vp import VP, GeometricVP

Nodes = Float[Array, "nodes"]


@runtime_checkable
class Proposal(Protocol):
    """The optimal density of one weighting, with its quantile."""

    def quantile(self, u: Times) -> Times:
        """Maps a uniform u in [0, 1) to a time."""
        ...

    def density(self, t: Times) -> Times:
        """r(t), integrating to one over [t_min, 1]."""
        ...


def proposal(weighting: Weighting, process: Process, t_min: float) -> Proposal:
    """Returns the closed form if there is one, else a table."""
    return closed_form(weighting, process, t_min) or Table(weighting, process, t_min)


def closed_form(weighting: Weighting, process: Process, t_min: float) -> Proposal | None:
    """Returns the density with the paper's inverse CDF (LSGM appendix; O5, O6, O10), or None if there is none."""
    if weighting is rescaled:
        return TimeUniform(t_min)
    match process:
        case VP() | GeometricVP() if weighting is likelihood:
            return NoiseShareUniform(process, t_min)
        case VP() | GeometricVP() if weighting is reweighted:
            return VarianceUniform(process, t_min)
        case VP() if weighting is unweighted and _is_steep(process):
            return ErrorFunction(process, t_min)
        case VE() if weighting is likelihood or (weighting is unweighted and process.sigma2_0 is None):
            return NoiseShareUniform(process, t_min)
        case VE() if weighting is reweighted:
            return MarginalUniform(process, t_min)
        case _:
            return None


def _is_steep(process: VP) -> bool:
    """Returns whether beta grows fast enough for the error function to be accurate."""
    return not is_concrete(process) or bool(process.beta_min**2 < 2.0 * (process.beta_max - process.beta_min))


@dataclasses.dataclass(frozen=True)
class TimeUniform:
    """Uniform times, optimal for `rescaled`, under which the error does not depend on time."""

    t_min: float

    def quantile(self, u: Times) -> Times:
        """Returns times that are linear in u."""
        return self.t_min + (1.0 - self.t_min) * u

    def density(self, t: Times) -> Times:
        """Returns the constant density."""
        return jnp.full_like(t, 1.0 / (1.0 - self.t_min))


@dataclasses.dataclass(frozen=True)
class NoiseShareUniform:
    """r_ll: the log of the share of sigma^2 in the variance of z_t is uniform (O5); for VP that is log sigma^2."""

    process: VP | GeometricVP | VE
    t_min: float

    def quantile(self, u: Times) -> Times:
        """Returns the time at which the log share has covered the fraction u of its range."""
        start, end = self._ends(u)
        # Counted from the end, where the log share is close to 0 and rounding must not change its sign.
        value = end + (1.0 - u) * (start - end)
        if not isinstance(self.process, VE):  # the variance of z_t is one: the share is sigma^2
            return self.process.time_of_log_variance(-value)
        return self.process.time_of_log_variance(
            jnp.log(data_variance(self.process)) - jnp.log(jnp.expm1(value))
        )

    def density(self, t: Times) -> Times:
        """Returns the derivative of the log share over its range."""
        start, end = self._ends(t)
        return 2.0 * likelihood(self.process, t) * gaussian_error(self.process, t) / (start - end)

    def _ends(self, like: Times) -> Float[Array, "2"]:
        """Returns -log share = log(1 + V snr) at t_min and 1."""
        log_signal = jnp.log(data_variance(self.process)) + log_snr(self.process, _ends(self.t_min, like))
        return jax.nn.softplus(log_signal)


@dataclasses.dataclass(frozen=True)
class VarianceUniform:
    """r_re of a variance-preserving process: sigma^2 is uniform (O6)."""

    process: VP | GeometricVP
    t_min: float

    def quantile(self, u: Times) -> Times:
        """Returns the time at which sigma^2 has covered the fraction u of its range."""
        (low, high), left = self._ends(u)
        value = low + u * (high - low)
        remainder = (1.0 - u) * (high - low) + left
        # Each form is accurate where the other cancels.
        return self.process.time_of_log_variance(
            jnp.where(value < 0.5, jnp.log(value), jnp.log1p(-remainder))
        )

    def density(self, t: Times) -> Times:
        """Returns the derivative of sigma^2 over its range."""
        (low, high), _ = self._ends(t)
        return 2.0 * reweighted(self.process, t) * gaussian_error(self.process, t) / (high - low)

    def _ends(self, like: Times) -> tuple[Float[Array, "2"], Scalar]:
        """Returns sigma^2 at t_min and 1, and 1 - sigma^2 at 1."""
        signal, noise = kernel(self.process, _ends(self.t_min, like))
        return noise[:, 0, 0] ** 2, data_variance(self.process) * signal[1, 0] ** 2


@dataclasses.dataclass(frozen=True)
class MarginalUniform:
    """r_re of the VESDE: the log variance of z_t is uniform (O6)."""

    process: VE
    t_min: float

    def quantile(self, u: Times) -> Times:
        """Returns the time at which the log variance of z_t has covered the fraction u of its range."""
        start, log_range, low = self._ends(u)
        return self.process.time_of_log_variance(jnp.log(low + start * jnp.expm1(u * log_range)))

    def density(self, t: Times) -> Times:
        """Returns the derivative of the log variance of z_t over its range."""
        _, log_range, _ = self._ends(t)
        slope = (
            2.0 * reweighted(self.process, t) * gaussian_error(self.process, t) / data_variance(self.process)
        )
        return slope / log_range

    def _ends(self, like: Times) -> tuple[Scalar, Scalar, Scalar]:
        """Returns the variance of z_t at t_min, its log range from there to 1, and sigma^2 at t_min."""
        low, high = sigma(self.process, _ends(self.t_min, like)) ** 2
        start = data_variance(self.process) + low
        return start, jnp.log1p((high - low) / start), low


@dataclasses.dataclass(frozen=True)
class ErrorFunction:
    """r_un of the VPSDE, proportional to 1 - sigma^2: one side of a Gaussian in t, with its quantile by erf (O10)."""

    process: VP
    t_min: float

    def quantile(self, u: Times) -> Times:
        """Returns the quantile by the inverse of the complementary error function, which is accurate in the tail."""
        start, end = self._ends(u)
        tail = (1.0 - u) * start + u * end
        slope = self.process.beta_max - self.process.beta_min
        x = -jax.scipy.special.ndtri(0.5 * tail)
        return x / jnp.sqrt(slope) - self.process.beta_min / slope

    def density(self, t: Times) -> Times:
        """Returns 1 - sigma^2 over its integral."""
        start, end = self._ends(t)
        slope = self.process.beta_max - self.process.beta_min
        height = jnp.exp(0.5 * self.process.beta_min**2 / slope) * jnp.sqrt(0.5 * jnp.pi / slope)
        return gaussian_error(self.process, t) / (data_variance(self.process) * height * (start - end))

    def _ends(self, like: Times) -> Float[Array, "2"]:
        """Returns the complementary error function at t_min and 1."""
        slope = self.process.beta_max - self.process.beta_min
        x = jnp.sqrt(0.5 * slope) * (_ends(self.t_min, like) + self.process.beta_min / slope)
        return jax.scipy.special.erfc(x)


NODES = 1024
FIRST_NODE = 1e-6  # first node of the geometric half of the grid if t_min is smaller


@dataclasses.dataclass(frozen=True)
class Table:
    """lambda e, interpolated linearly between nodes and sampled exactly (O11).

    `density` is that of the interpolated function, so the interpolation makes the density slightly suboptimal, but
    never incorrect.
    """

    weighting: Weighting
    process: Process
    t_min: float

    def quantile(self, u: Times) -> Times:
        """Returns the root of the distribution function, a quadratic between two nodes."""
        nodes, values, cumulative = self._table(u.dtype)
        u = u * cumulative[-1]
        cell = jnp.clip(jnp.searchsorted(cumulative, u, side="right") - 1, 0, NODES - 2)
        slope = (values[cell + 1] - values[cell]) / (nodes[cell + 1] - nodes[cell])
        mass = u - cumulative[cell]
        root = jnp.sqrt(jnp.maximum(values[cell] ** 2 + 2.0 * slope * mass, 0.0))
        return nodes[cell] + 2.0 * mass / (values[cell] + root)

    def density(self, t: Times) -> Times:
        """Returns the interpolated function over its integral."""
        nodes, values, cumulative = self._table(t.dtype)
        return jnp.interp(t, nodes, values) / cumulative[-1]

    def _table(self, dtype: jnp.dtype) -> tuple[Nodes, Nodes, Nodes]:
        """Returns the nodes, lambda e at the nodes, and its integral from t_min to each node."""
        half = NODES // 2
        steep = jnp.geomspace(max(self.t_min, FIRST_NODE), 1.0, half, dtype=dtype)
        even = jnp.linspace(self.t_min, 1.0, NODES - half + 2, dtype=dtype)[1:-1]
        nodes = jnp.sort(jnp.concatenate([steep, even])).at[0].set(self.t_min).at[-1].set(1.0)
        values = self.weighting(self.process, nodes) * gaussian_error(self.process, nodes)
        masses = 0.5 * (values[1:] + values[:-1]) * jnp.diff(nodes)
        return nodes, values, jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(masses)])


def _ends(t_min: float, like: Times) -> Float[Array, "2"]:
    return jnp.asarray([t_min, 1.0], like.dtype)
