"""The forward process as a linear SDE: its protocol, and all functions that follow from linearity.

    dz = F(t) z dt + g(t) e_k dw,      z_t | z_s ~ N(A(s, t) z_s, L L^T),      t in [0, 1].           (D1)

Every latent dimension has k coordinates. Most processes have one, and z is a plain array; critically-damped Langevin
diffusion has two, and z is a `Phase(x, v)`. Data is the first coordinate at t = 0, noise enters the last (e_k), and
t = 1 is noise. A process defines F, g, the transition and two variances. The functions below derive the perturbation
kernel, scores, the reverse SDE and the probability-flow ODE from them.

Matrices are k x k, also for k = 1. L is a lower Cholesky factor, so L_kk, here `sigma`, is the standard deviation of
the last coordinate given the others. Labels in parentheses refer to docs/derivations.md.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import (
    Key,
    Latents,
    PerSample,
    State,
    Times,
    as_state,
    coordinates,
    draw_array,
    expand,
    sum_per_sample,
)
from lsgm_jax.processes.matrices import (
    Matrix,
    Scalars,
    Vector,
    add_noise,
    as_matrix,
    matvec,
    solve_lower,
    solve_lower_state,
)

Number = float | Scalars


class Transition(NamedTuple):
    """z_t | z_s ~ N(mean z_s, noise noise^T)."""

    mean: Matrix
    noise: Matrix  # lower triangular


def one_by_one(mean: Scalars, variance: Scalars) -> Transition:
    """Returns the transition of a process with one coordinate."""
    return Transition(as_matrix([[mean]]), as_matrix([[jnp.sqrt(variance)]]))


class Kernel(NamedTuple):
    """z_t | z_0 ~ N(signal z_0, noise noise^T), including the initial variance."""

    signal: Vector
    noise: Matrix  # lower triangular


@runtime_checkable
class Process(Protocol):
    """A linear SDE on [0, 1]. Methods are elementwise in times, and accurate to float32 rounding from t = 1e-5 on."""

    def drift(self, t: Scalars) -> Matrix:
        """Returns F(t), the matrix of the drift F z."""
        ...

    def diffusion(self, t: Scalars) -> Scalars:
        """Returns g(t), the diffusion coefficient of the last coordinate."""
        ...

    def transition(self, s: Scalars, t: Scalars) -> Transition:
        """Returns the transition from time s to t >= s."""
        ...

    def initial_variance(self) -> tuple[Number, ...]:
        """Returns the variance of each coordinate at time 0, around (z_0, 0, ...)."""
        ...

    def prior_variance(self) -> tuple[Number, ...]:
        """Returns the variance of each coordinate under the Gaussian prior p(z_1)."""
        ...


# The perturbation kernel


def kernel(process: Process, t: Scalars) -> Kernel:
    """Returns the kernel of z_t given the data z_0, averaged over the initial variance (D1)."""
    mean, noise = process.transition(jnp.zeros_like(t), t)
    for index, initial in enumerate(process.initial_variance()):
        noise = add_noise(noise, mean[..., :, index] * jnp.sqrt(initial))
    if added := getattr(process, "numerical_eps", 0.0):  # of CLD as published, in the kernel alone
        for unit in jnp.eye(noise.shape[-1]):
            noise = add_noise(noise, jnp.broadcast_to(jnp.sqrt(added) * unit, noise.shape[:-1]))
    return Kernel(mean[..., :, 0], noise)


def sigma(process: Process, t: Scalars) -> Scalars:
    """Returns L_kk, the standard deviation of the last coordinate of z_t given z_0 and the other coordinates."""
    return kernel(process, t).noise[..., -1, -1]


def has_noise(process: Process, t: float) -> bool:
    """Returns whether `sigma` is positive at a time, by one program; eagerly, every operation would be compiled."""
    return bool(jax.jit(lambda: sigma(process, jnp.asarray(t)) > 0.0)())


def data_variance(process: Process) -> Number:
    """Returns 1 minus the initial variance: Gaussian data of this variance start at variance one."""
    return 1.0 - process.initial_variance()[0]


def whitened_signal(process: Process, t: Scalars) -> Vector:
    """Returns L^-1 a for the signal a of the kernel: one unit of data in units of the noise (D6)."""
    signal, noise = kernel(process, t)
    return solve_lower(noise, signal)


def log_snr(process: Process, t: Scalars) -> Scalars:
    """Returns the log signal-to-noise ratio, log |L^-1 a|^2; 2 log(alpha / sigma) if k = 1 (D6)."""
    return jnp.log(jnp.sum(whitened_signal(process, t) ** 2, axis=-1))


def noise_entropy(process: Process, t: Scalars) -> Scalars:
    """Returns the entropy of z_t given z_0 per latent dimension, nats: k (1 + log 2 pi) / 2 + log det L (D7)."""
    diagonal = jnp.diagonal(kernel(process, t).noise, axis1=-2, axis2=-1)
    return jnp.sum(0.5 * (1.0 + jnp.log(2.0 * jnp.pi)) + jnp.log(diagonal), axis=-1)


def auxiliary_entropy(process: Process) -> Scalars:
    """Returns the entropy at time 0 of all coordinates but the data, nats per latent dimension; 0 if k = 1 (D7)."""
    variances = jnp.asarray(process.initial_variance()[1:])
    return jnp.sum(0.5 * (1.0 + jnp.log(2.0 * jnp.pi * variances)))


# Perturbation and scores


def perturb(process: Process, z_0: Latents, t: Times, eps: State) -> State:
    """Returns z_t = a z_0 + L eps (D1)."""
    signal, noise = kernel(process, t)
    noises = coordinates(matvec(noise, eps))
    return as_state([expand(signal[:, i], z_0) * z_0 + noises[i] for i in range(len(noises))])


def perturb_state(process: Process, z_0: State, t: Times, eps: State) -> State:
    """Returns z_t = A z_0 + L eps for all coordinates of z_0, in the kernel of a process without initial variance."""
    mean, noise = process.transition(jnp.zeros_like(t), t).mean, kernel(process, t).noise
    return jax.tree.map(jnp.add, matvec(mean, z_0), matvec(noise, eps))


def move(process: Process, z_s: State, s: Times, t: Times, eps: State) -> State:
    """Returns z_t = A z_s + L eps, a sample of the transition from s to t for unit noise eps (D1)."""
    mean, noise = process.transition(s, t)
    return jax.tree.map(jnp.add, matvec(mean, z_s), matvec(noise, eps))


def score_of_eps(process: Process, eps_hat: Latents, t: Times) -> Latents:
    """Returns the score in the last coordinate, -eps_hat / L_kk (D2)."""
    return -eps_hat / expand(sigma(process, t), eps_hat)


def gaussian_eps(process: Process, z_t: State, t: Times, variance: Number | None = None) -> Latents:
    """Returns the exact noise prediction for data z_0 ~ N(0, variance) (D3).

    Args:
        variance: of the data, at least 0; None for `data_variance`.
    """
    signal, noise = kernel(process, t)
    variance = data_variance(process) if variance is None else variance
    marginal = add_noise(noise, signal * jnp.sqrt(variance))
    *_, last = solve_lower_state(marginal, z_t)
    return expand(noise[:, -1, -1] / marginal[:, -1, -1], last) * last


def expected_data(process: Process, z_t: State, eps_hat: Latents, t: Times) -> Latents:
    """Returns the estimate of z_0 for a prediction of the noise of the last coordinate (D15)."""
    last = solve_lower_state(kernel(process, t).noise, z_t)[-1]
    return (last - eps_hat) / expand(whitened_signal(process, t)[:, -1], last)


def gaussian_error(process: Process, t: Scalars) -> Scalars:
    """Returns the mean squared error per dimension of `gaussian_eps` on Gaussian data of `data_variance` (D3)."""
    whitened = whitened_signal(process, t) * jnp.sqrt(data_variance(process))
    return whitened[..., -1] ** 2 / (1.0 + jnp.sum(whitened**2, axis=-1))


# Reverse-time dynamics


def reverse_drift(process: Process, z_t: State, eps_hat: Latents, t: Times) -> State:
    """Returns the drift of the reverse-time SDE, F z - g^2 e_k score, for dt < 0 (D4)."""
    return _score_drift(process, z_t, eps_hat, t, 1.0)


def probability_flow(process: Process, z_t: State, eps_hat: Latents, t: Times) -> State:
    """Returns dz/dt of the probability-flow ODE, F z - g^2 e_k score / 2 (D5)."""
    return _score_drift(process, z_t, eps_hat, t, 0.5)


def flow_rate(process: Process, t: Times) -> Times:
    """Returns g^2 / (2 sigma), the velocity of the probability flow per unit of predicted noise."""
    return 0.5 * process.diffusion(t) ** 2 / sigma(process, t)


def _score_drift(process: Process, z_t: State, eps_hat: Latents, t: Times, share: float) -> State:
    rate = share * process.diffusion(t) ** 2 / sigma(process, t)
    *others, last = coordinates(matvec(process.drift(t), z_t))
    return as_state([*others, last + expand(rate, last) * eps_hat])


# Prior and initial state


def unit_noise(process: Process, key: Key, shape: tuple[int, ...]) -> State:
    """Draws standard Gaussian noise for every coordinate of latents of `shape` [batch, ...]."""
    draws = draw_array(jax.random.normal, key, (len(process.prior_variance()), *shape))
    return as_state([draws[index] for index in range(len(draws))])


def sample_prior(process: Process, key: Key, shape: tuple[int, ...]) -> State:
    """Draws z_1 from the prior, for latents of `shape` [batch, ...]."""
    noises = coordinates(unit_noise(process, key, shape))
    variances = process.prior_variance()
    return as_state([jnp.sqrt(variance) * eps for variance, eps in zip(variances, noises, strict=True)])


def prior_log_prob(process: Process, z_1: State) -> PerSample:
    """Returns log p(z_1) under the prior, nats, summed over dimensions and coordinates."""
    return _gaussian_log_prob(coordinates(z_1), process.prior_variance())


def add_auxiliary(process: Process, key: Key, z_0: Latents, t: float) -> tuple[State, PerSample]:
    """Draws all coordinates but the data, with their variance at time t given z_0 (S4).

    Returns:
        The state, with z_0 as its first coordinate, and the log density of the other coordinates, nats.
    """
    noise = kernel(process, jnp.asarray(t, z_0.dtype)).noise
    variances = [jnp.sum(row**2) for row in noise[1:]]
    draws = draw_array(jax.random.normal, key, (len(variances), *z_0.shape), z_0.dtype)
    others = [jnp.sqrt(variance) * draws[index] for index, variance in enumerate(variances)]
    log_prob = _gaussian_log_prob(others, variances) if others else jnp.zeros(len(z_0), z_0.dtype)
    return as_state([z_0, *others]), log_prob


def _gaussian_log_prob(values: Sequence[Latents], variances: Sequence[Number]) -> PerSample:
    terms = [z**2 / var + jnp.log(2.0 * jnp.pi * var) for z, var in zip(values, variances, strict=True)]
    return -0.5 * sum_per_sample(functools.reduce(jnp.add, terms))
