"""Variance-preserving processes dz = -beta z / 2 dt + sqrt(beta) dw, and the sub-VPSDE with less noise.

The variance is -expm1(-B) with B = int beta, plus the variance at time 0, so no close values are subtracted. float32 is
accurate to rounding from t = 1e-5 to 1, without any epsilon.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from lsgm_jax.processes.linear import Number, Transition, one_by_one
from lsgm_jax.processes.matrices import Matrix, Scalars, as_matrix
from lsgm_jax.processes.schedules import GeometricVariance, LinearBeta, require


class VariancePreserving(abc.ABC):
    """Base of the processes that are defined by their noise rate and their variance at time 0 (D9)."""

    @abc.abstractmethod
    def beta(self, t: Scalars) -> Scalars:
        """Returns the noise rate."""

    @abc.abstractmethod
    def int_beta(self, s: Scalars, t: Scalars) -> Scalars:
        """Returns the integral of beta from s to t, not as the difference of two integrals, which would cancel."""

    @abc.abstractmethod
    def start(self) -> Number:
        """Returns the variance at time 0."""

    def drift(self, t: Scalars) -> Matrix:
        """Returns F = -beta / 2."""
        return as_matrix([[-0.5 * self.beta(t)]])

    def diffusion(self, t: Scalars) -> Scalars:
        """Returns g = sqrt(beta)."""
        return jnp.sqrt(self.beta(t))

    def transition(self, s: Scalars, t: Scalars) -> Transition:
        """Returns mean exp(-B / 2) and variance 1 - exp(-B) with B = int_s^t beta."""
        int_beta = self.int_beta(s, t)
        return one_by_one(jnp.exp(-0.5 * int_beta), -jnp.expm1(-int_beta))

    def initial_variance(self) -> tuple[Number]:
        """Returns the variance at time 0."""
        return (self.start(),)

    def prior_variance(self) -> tuple[Number]:
        """Returns 1: the prior is a standard Gaussian."""
        return (1.0,)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class VP(LinearBeta, VariancePreserving):
    """VPSDE: beta grows linearly from beta_min to beta_max (Song et al. 2021; LSGM appendix).

    Attributes:
        sigma2_0: the variance at time 0.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max and 0 <= sigma2_0 < 1.
    """

    sigma2_0: Number = 0.0

    def __post_init__(self):
        _require_rates(self)

    def start(self) -> Number:
        """Returns the variance at time 0."""
        return self.sigma2_0

    def time_of_log_variance(self, log_variance: Scalars) -> Scalars:
        """Returns the time of a given log sigma^2; the logarithm stays accurate where the variance nears 0 or 1."""
        remains = -jax.nn.log1mexp(-log_variance)  # -log(1 - sigma^2)
        return self.time_of_int_beta(remains + jnp.log1p(-self.sigma2_0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometricVP(GeometricVariance, VariancePreserving):
    """Geometric VPSDE: sigma^2 grows geometrically from sigma2_min to sigma2_max (LSGM appendix).

    With the default sigma2_0, uniform times have the least variance for the likelihood weight (O5).

    Raises:
        ValueError: unless 0 < sigma2_min < sigma2_max < 1 and the variance stays below 1 for this sigma2_0.
    """

    sigma2_min: Number = 3e-5
    sigma2_max: Number = 0.999

    def __post_init__(self):
        require(
            self,
            "0 < sigma2_min < sigma2_max and 0 <= sigma2_0 < 1 + sigma2_min - sigma2_max",
            lambda: (
                0.0 < self.sigma2_min < self.sigma2_max
                and 0.0 <= self.start() < 1.0 + self.sigma2_min - self.sigma2_max
            ),
        )

    def remainder(self, t: Scalars) -> Scalars:
        """Returns 1 - sigma^2, as the sum of two positive terms: its value at t = 1, and its decrease from t to 1."""
        left = 1.0 - self.sigma2_max + (self.sigma2_min - self.start())
        return left + self.growth(t, jnp.ones_like(t))

    def beta(self, t: Scalars) -> Scalars:
        """Returns the noise rate, the derivative of sigma^2 over 1 - sigma^2."""
        return self.log_ratio() * self.curve(t) / self.remainder(t)

    def int_beta(self, s: Scalars, t: Scalars) -> Scalars:
        """Returns the integral of beta from s to t, the log of the ratio of 1 - sigma^2 at s and t."""
        return jnp.log1p(self.growth(s, t) / self.remainder(t))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SubVP(LinearBeta):
    """Sub-VPSDE: the mean of the VPSDE with less noise, g^2 = beta (1 - exp(-2 int_beta)) (Song et al. 2021; D10).

    Attributes:
        sigma2_0: the variance at time 0.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max and 0 <= sigma2_0 < 1.
    """

    sigma2_0: Number = 0.0

    def __post_init__(self):
        _require_rates(self)

    def drift(self, t: Scalars) -> Matrix:
        """Returns F = -beta / 2."""
        return as_matrix([[-0.5 * self.beta(t)]])

    def diffusion(self, t: Scalars) -> Scalars:
        """Returns g, which is 0 at t = 0."""
        return jnp.sqrt(-self.beta(t) * jnp.expm1(-2.0 * self.int_beta(jnp.zeros_like(t), t)))

    def transition(self, s: Scalars, t: Scalars) -> Transition:
        """Returns mean exp(-B / 2), variance (1 - exp(-B)) (1 - exp(-B_s - B_t)) for B = int_s^t beta = B_t - B_s."""
        zero, int_beta = jnp.zeros_like(t), self.int_beta(s, t)
        both = self.int_beta(zero, s) + self.int_beta(zero, t)
        return one_by_one(jnp.exp(-0.5 * int_beta), jnp.expm1(-int_beta) * jnp.expm1(-both))

    def initial_variance(self) -> tuple[Number]:
        """Returns the variance at time 0."""
        return (self.sigma2_0,)

    def prior_variance(self) -> tuple[Number]:
        """Returns 1: the prior is a standard Gaussian."""
        return (1.0,)

    def time_of_log_variance(self, log_variance: Scalars) -> Scalars:
        """Returns the time of a given log variance, by two forms of a root: for small exp(-B), and small 1 - exp(-B).

        A variance at time 0 first shrinks, until 1 - exp(-B) = sigma2_0 / 2; the returned time lies after that.
        """
        variance, remains, start = jnp.exp(log_variance), -jnp.expm1(log_variance), self.sigma2_0
        entered = 0.5 * (start + jnp.sqrt(start**2 + 4.0 * (variance - start)))  # 1 - exp(-B)
        rest = 2.0 - start
        left = 2.0 * remains / (rest + jnp.sqrt(rest**2 - 4.0 * remains))  # exp(-B)
        early = entered < 0.5
        return self.time_of_int_beta(
            jnp.where(
                early, -jnp.log1p(-jnp.where(early, entered, 0.0)), -jnp.log(jnp.where(early, 1.0, left))
            )
        )


def _require_rates(process: VP | SubVP) -> None:
    require(
        process,
        "0 < beta_min <= beta_max and 0 <= sigma2_0 < 1",
        lambda: 0.0 < process.beta_min <= process.beta_max and 0.0 <= process.sigma2_0 < 1.0,
    )
