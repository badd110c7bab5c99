"""A step from t to s < t of a process of one coordinate: its coefficients, without cancellation."""

from typing import NamedTuple

import jax.numpy as jnp

from lsgm_jax.arrays import Latents
from lsgm_jax.processes.linear import Process, kernel
from lsgm_jax.processes.matrices import Scalars


class Interval(NamedTuple):
    """The transition z_t | z_s ~ N(mean z_s, variance) and the kernels at both ends (S5), elementwise in the times."""

    mean: Scalars
    variance: Scalars
    alpha_s: Scalars
    sigma_s: Scalars
    alpha_t: Scalars
    sigma_t: Scalars

    def fall(self) -> Scalars:
        """Returns sigma_t - mean sigma_s, which is alpha_t times the decrease of sigma / alpha."""
        return self.variance / (self.sigma_t + self.mean * self.sigma_s)

    def log_snr_gain(self) -> Scalars:
        """Returns h, half of the increase of the log signal-to-noise ratio; infinite if there is no noise at s."""
        return 0.5 * jnp.log1p(self.variance / (self.mean * self.sigma_s) ** 2)

    def data(self, z_t: Latents, eps_hat: Latents) -> Latents:
        """Returns the estimate of z_0 for eps_hat at t (D15)."""
        return (z_t - self.sigma_t * eps_hat) / self.alpha_t

    def follow(self, z_t: Latents, eps_hat: Latents) -> Latents:
        """Returns z_s of the probability flow from t to s for constant eps_hat (S5)."""
        return (z_t - self.fall() * eps_hat) / self.mean


def between(process: Process, s: Scalars, t: Scalars) -> Interval:
    """Returns the interval from t to s <= t of a process of one coordinate."""
    mean, noise = process.transition(s, t)
    ends = (value for time in (s, t) for value in _alpha_sigma(process, time))
    return Interval(mean[..., 0, 0], noise[..., 0, 0] ** 2, *ends)


def _alpha_sigma(process: Process, t: Scalars) -> tuple[Scalars, Scalars]:
    signal, noise = kernel(process, t)
    return signal[..., 0], noise[..., 0, 0]
