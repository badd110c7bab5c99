"""What solvers for processes of one coordinate need to know about a step from t to s < t, without cancellation."""

from typing import NamedTuple

import jax.numpy as jnp

from lsgm_jax.arrays import Latents
from lsgm_jax.processes.linear import Process, kernel
from lsgm_jax.processes.matrices import Scalars


class Interval(NamedTuple):
    """z_t | z_s ~ N(mean z_s, variance), and the kernels at both ends (S5). Elementwise in the times."""

    mean: Scalars
    variance: Scalars
    alpha_s: Scalars
    sigma_s: Scalars
    alpha_t: Scalars
    sigma_t: Scalars

    def fall(self) -> Scalars:
        """sigma_t - mean sigma_s: alpha_t times what sigma / alpha falls by."""
        return self.variance / (self.sigma_t + self.mean * self.sigma_s)

    def log_snr_gain(self) -> Scalars:
        """h, half of what the log of the signal-to-noise ratio gains; infinite if no noise is left at s."""
        return 0.5 * jnp.log1p(self.variance / (self.mean * self.sigma_s) ** 2)

    def data(self, z_t: Latents, eps_hat: Latents) -> Latents:
        """The estimate of z_0 that goes with eps_hat at t (D15)."""
        return (z_t - self.sigma_t * eps_hat) / self.alpha_t

    def follow(self, z_t: Latents, eps_hat: Latents) -> Latents:
        """The probability flow from t to s if eps_hat does not change on the way (S5)."""
        return (z_t - self.fall() * eps_hat) / self.mean


def between(process: Process, s: Scalars, t: Scalars) -> Interval:
    """The interval from t to s <= t of a process of one coordinate."""
    mean, noise = process.transition(s, t)
    ends = (value for time in (s, t) for value in _alpha_sigma(process, time))
    return Interval(mean[..., 0, 0], noise[..., 0, 0] ** 2, *ends)


def _alpha_sigma(process: Process, t: Scalars) -> tuple[Scalars, Scalars]:
    signal, noise = kernel(process, t)
    return signal[..., 0], noise[..., 0, 0]
