"""The variance-exploding process: dz = g dw. The data stays, the noise grows over it."""

import dataclasses

import jax
import jax.numpy as jnp

from lsgm_jax.processes.linear import Number, Transition, one_by_one
from lsgm_jax.processes.matrices import Matrix, Scalars, as_matrix
from lsgm_jax.processes.schedules import GeometricVariance, require


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class VE(GeometricVariance):
    """VESDE: sigma^2 grows geometrically from sigma2_min to sigma2_max (Song et al. 2021; LSGM appendix).

    Raises:
        ValueError: unless 0 < sigma2_min < sigma2_max and 0 <= sigma2_0 < 1.
    """

    sigma2_min: Number = 1e-4
    sigma2_max: Number = 200.0

    def __post_init__(self):
        require(
            self,
            "0 < sigma2_min < sigma2_max and 0 <= sigma2_0 < 1",
            lambda: 0.0 < self.sigma2_min < self.sigma2_max and 0.0 <= self.start() < 1.0,
        )

    def drift(self, t: Scalars) -> Matrix:
        """F = 0."""
        return as_matrix([[jnp.zeros_like(t)]])

    def diffusion(self, t: Scalars) -> Scalars:
        """Square root of the variance's slope."""
        return jnp.sqrt(self.log_ratio() * self.curve(t))

    def transition(self, s: Scalars, t: Scalars) -> Transition:
        """Mean 1 and variance as much as the curve has grown."""
        return one_by_one(jnp.ones_like(t), self.growth(s, t))

    def initial_variance(self) -> tuple[Number]:
        """That of `start`."""
        return (self.start(),)

    def prior_variance(self) -> tuple[Number]:
        """That of z_1 for Gaussian data of variance 1 - sigma2_0, which an encoder comes close to."""
        return (1.0 + self.sigma2_max - self.sigma2_min,)

    def time_of_log_variance(self, log_variance: Scalars) -> Scalars:
        """Inverse of the log variance."""
        return self.time_of_variance(jnp.exp(log_variance))
