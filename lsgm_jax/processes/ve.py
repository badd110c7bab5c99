"""The variance-exploding process dz = g dw: the signal stays, and the variance of the noise grows."""

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
        """Returns F = 0."""
        return as_matrix([[jnp.zeros_like(t)]])

    def diffusion(self, t: Scalars) -> Scalars:
        """Returns g, the square root of the derivative of the variance."""
        return jnp.sqrt(self.log_ratio() * self.curve(t))

    def transition(self, s: Scalars, t: Scalars) -> Transition:
        """Returns mean 1 and the growth of the variance from s to t."""
        return one_by_one(jnp.ones_like(t), self.growth(s, t))

    def initial_variance(self) -> tuple[Number]:
        """Returns the variance at time 0."""
        return (self.start(),)

    def prior_variance(self) -> tuple[Number]:
        """Returns the variance of z_1 for Gaussian data of variance 1 - sigma2_0, close to that of an encoder's."""
        return (1.0 + self.sigma2_max - self.sigma2_min,)
