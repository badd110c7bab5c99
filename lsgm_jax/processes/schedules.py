"""Noise schedules that several processes share: linear beta and geometric variance."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from lsgm_jax.processes.linear import Number
from lsgm_jax.processes.matrices import Scalars


def is_concrete(process: object) -> bool:
    """Returns whether all fields are Python numbers, not traced arrays."""
    return all(isinstance(value, (int, float, type(None))) for value in vars(process).values())


def require(process: object, condition: str, holds: Callable[[], bool | Scalars]) -> None:
    """Checks the fields of a process. Traced fields, with which JAX rebuilds a process, pass unchecked.

    Args:
        condition: the condition in words, for the message.
        holds: returns whether it holds.

    Raises:
        ValueError: if the condition does not hold; names it and the process.
    """
    if is_concrete(process) and not holds():
        raise ValueError(f"{process} needs {condition}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearBeta:
    """The linear schedule beta(t) = beta_min + (beta_max - beta_min) t."""

    beta_min: Number = 0.1
    beta_max: Number = 20.0

    def beta(self, t: Scalars) -> Scalars:
        """Returns the noise rate."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def int_beta(self, s: Scalars, t: Scalars) -> Scalars:
        """Returns the integral of beta from s to t."""
        return (t - s) * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * (t + s))

    def time_of_int_beta(self, int_beta: Scalars) -> Scalars:
        """Returns the time up to which the integral of beta from 0 is `int_beta`, in a form without cancellation."""
        slope = self.beta_max - self.beta_min
        return 2.0 * int_beta / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2.0 * slope * int_beta))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometricVariance:
    """A variance that grows geometrically, sigma2_min (sigma2_max / sigma2_min)^t.

    Attributes:
        sigma2_0: the variance at time 0; None for `sigma2_min`. It shifts the curve by sigma2_0 - sigma2_min.
    """

    sigma2_min: Number
    sigma2_max: Number
    sigma2_0: Number | None = None

    def ratio(self) -> Number:
        """Returns sigma2_max / sigma2_min."""
        return self.sigma2_max / self.sigma2_min

    def log_ratio(self) -> Scalars:
        """Returns the derivative of the log of the curve."""
        return jnp.log(self.ratio())

    def curve(self, t: Scalars) -> Scalars:
        """Returns the geometric curve, as a power: one digit more accurate in float32 than exp(t log ratio)."""
        return self.sigma2_min * jnp.power(self.ratio(), t)

    def growth(self, s: Scalars, t: Scalars) -> Scalars:
        """Returns curve(t) - curve(s), without cancellation where s and t are close."""
        near = jnp.expm1(self.log_ratio() * (t - s))
        far = jnp.power(self.ratio(), t - s) - 1.0
        return self.curve(s) * jnp.where(near < 1.0, near, far)

    def start(self) -> Number:
        """Returns the variance at time 0."""
        return self.sigma2_min if self.sigma2_0 is None else self.sigma2_0

    def time_of_log_variance(self, log_variance: Scalars) -> Scalars:
        """Returns the time at which the log of the shifted curve is `log_variance`."""
        shifted = jnp.exp(log_variance) + (self.sigma2_min - self.start())
        return jnp.log(shifted / self.sigma2_min) / self.log_ratio()
