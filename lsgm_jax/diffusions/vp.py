"""Variance-preserving processes: dz = -beta z / 2 dt + sqrt(beta) dw.

Both are described by the exponent C(t) of what is left of the data,

    1 - sigma^2 = (1 - sigma2_0) exp(-int_0^t beta) = exp(-C),      beta = C'.                       (D8)

`-expm1(-C)` and `log1mexp(C)` give the variance and its logarithm without the cancellation of 1 - exp(-C), so
float32 is exact to rounding from t = 1e-5 to 1 and no epsilon has to be added anywhere.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lsgm_jax.diffusions.linear import Scalars


def _concrete(process: object) -> bool:
    """Whether the numbers are known now: JAX rebuilds a process with traced ones, which cannot be checked."""
    return all(isinstance(value, (int, float)) for value in vars(process).values())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class VP:
    """VPSDE: beta grows linearly from beta_min to beta_max (Song et al. 2021; LSGM appendix)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    sigma2_0: float = 0.0

    def __post_init__(self):
        if _concrete(self) and not (0.0 < self.beta_min <= self.beta_max and 0.0 <= self.sigma2_0 < 1.0):
            raise ValueError(f"{self} needs 0 < beta_min <= beta_max and 0 <= sigma2_0 < 1")

    def beta(self, t: Scalars) -> Scalars:
        """Noise rate."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def int_beta(self, t: Scalars) -> Scalars:
        """Integral of beta from 0 to t."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def drift(self, t: Scalars) -> Scalars:
        """f(t) = -beta / 2."""
        return -0.5 * self.beta(t)

    def diffusion(self, t: Scalars) -> Scalars:
        """g(t) = sqrt(beta)."""
        return jnp.sqrt(self.beta(t))

    def alpha(self, t: Scalars) -> Scalars:
        """exp(-int_beta / 2)."""
        return jnp.exp(-0.5 * self.int_beta(t))

    def log_variance(self, t: Scalars) -> Scalars:
        """log(1 - exp(-C))."""
        return jax.nn.log1mexp(self.int_beta(t) - jnp.log1p(-self.sigma2_0))

    def time_of_log_variance(self, log_variance: Scalars) -> Scalars:
        """Root of the quadratic int_beta(t) = B in the form that does not cancel for small B."""
        int_beta = jnp.log1p(-self.sigma2_0) - jax.nn.log1mexp(-log_variance)
        slope = self.beta_max - self.beta_min
        return 2.0 * int_beta / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * slope * int_beta))

    def prior_variance(self) -> float:
        """The prior is standard Normal."""
        return 1.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometricVP:
    """Geometric VPSDE: log sigma^2 grows linearly from sigma2_min to sigma2_max (LSGM appendix).

    Uniform times are its log-variance-uniform density, so they already have the least variance (O5).
    """

    sigma2_min: float = 3e-5
    sigma2_max: float = 0.999

    def __post_init__(self):
        if _concrete(self) and not 0.0 < self.sigma2_min < self.sigma2_max < 1.0:
            raise ValueError(f"{self} needs 0 < sigma2_min < sigma2_max < 1")

    def log_ratio(self) -> Scalars | float:
        """log(sigma2_max / sigma2_min)."""
        return jnp.log(self.sigma2_max) - jnp.log(self.sigma2_min)

    def remainder(self, t: Scalars) -> Scalars:
        """1 - sigma^2, written so that it keeps its digits near t = 1."""
        return (1.0 - self.sigma2_max) - self.sigma2_max * jnp.expm1((t - 1.0) * self.log_ratio())

    def beta(self, t: Scalars) -> Scalars:
        """Slope of sigma^2 over what is left, 1 - sigma^2."""
        return self.log_ratio() * jnp.exp(self.log_variance(t)) / self.remainder(t)

    def drift(self, t: Scalars) -> Scalars:
        """f(t) = -beta / 2."""
        return -0.5 * self.beta(t)

    def diffusion(self, t: Scalars) -> Scalars:
        """g(t) = sqrt(beta)."""
        return jnp.sqrt(self.beta(t))

    def alpha(self, t: Scalars) -> Scalars:
        """Square root of (1 - sigma(t)^2) / (1 - sigma(0)^2)."""
        return jnp.sqrt(self.remainder(t) / (1.0 - self.sigma2_min))

    def log_variance(self, t: Scalars) -> Scalars:
        """Linear in t."""
        return jnp.log(self.sigma2_min) + t * self.log_ratio()

    def time_of_log_variance(self, log_variance: Scalars) -> Scalars:
        """Inverse of a line."""
        return (log_variance - jnp.log(self.sigma2_min)) / self.log_ratio()

    def prior_variance(self) -> float:
        """The prior is standard Normal."""
        return 1.0
