"""A forward process is a linear SDE; everything that follows from that is written here once.

    dz = f(t) z dt + g(t) dw,      z_t | z_0 ~ N(alpha(t) z_0, sigma(t)^2 I),      t in [0, 1].      (D1)

Data sits at t = 0 and noise at t = 1. A process states f, g, alpha and sigma^2; perturbation, scores, the
reverse SDE and the probability-flow ODE are consequences. Numbers in brackets refer to docs/derivations.md.
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Key, Latents, PerSample, Times, expand, sum_per_sample

Scalars = Float[Array, "..."]


@runtime_checkable
class Process(Protocol):
    """A linear SDE on [0, 1]. All methods are elementwise in `t` and right to float32 rounding."""

    def drift(self, t: Scalars) -> Scalars:
        """f(t), the factor of z in the drift."""
        ...

    def diffusion(self, t: Scalars) -> Scalars:
        """g(t)."""
        ...

    def alpha(self, t: Scalars) -> Scalars:
        """Factor of z_0 in the mean of z_t."""
        ...

    def log_variance(self, t: Scalars) -> Scalars:
        """Log sigma(t)^2."""
        ...

    def time_of_log_variance(self, log_variance: Scalars) -> Scalars:
        """Inverse of `log_variance`. The logarithm keeps its digits where the variance nears 0 and 1."""
        ...

    def prior_variance(self) -> Scalars | float:
        """Variance of the Normal prior that replaces the distribution of z_1."""
        ...


def variance(process: Process, t: Scalars) -> Scalars:
    """sigma(t)^2."""
    return jnp.exp(process.log_variance(t))


def sigma(process: Process, t: Scalars) -> Scalars:
    """Standard deviation of z_t given z_0."""
    return jnp.exp(0.5 * process.log_variance(t))


def log_snr(process: Process, t: Scalars) -> Scalars:
    """2 log(alpha / sigma)."""
    return 2.0 * jnp.log(process.alpha(t)) - process.log_variance(t)


def perturb(process: Process, z_0: Latents, t: Times, eps: Latents) -> Latents:
    """z_t = alpha z_0 + sigma eps (D1)."""
    return expand(process.alpha(t), z_0) * z_0 + expand(sigma(process, t), z_0) * eps


def score_of_eps(process: Process, eps_hat: Latents, t: Times) -> Latents:
    """Grad log p_t = -eps_hat / sigma (D2)."""
    return -eps_hat / expand(sigma(process, t), eps_hat)


def normal_eps(process: Process, z_t: Latents, t: Times) -> Latents:
    """Best noise prediction if z_0 were standard Normal: sigma z_t / (alpha^2 + sigma^2) (D3)."""
    total = process.alpha(t) ** 2 + variance(process, t)
    return expand(sigma(process, t) / total, z_t) * z_t


def reverse_drift(process: Process, z_t: Latents, eps_hat: Latents, t: Times) -> Latents:
    """Drift of the reverse-time SDE, f z - g^2 score, for dt < 0 (D4)."""
    g2 = process.diffusion(t) ** 2
    return expand(process.drift(t), z_t) * z_t + expand(g2 / sigma(process, t), z_t) * eps_hat


def probability_flow(process: Process, z_t: Latents, eps_hat: Latents, t: Times) -> Latents:
    """dz/dt of the ODE with the marginals of the SDE, f z - g^2 score / 2 (D5)."""
    g2 = process.diffusion(t) ** 2
    return expand(process.drift(t), z_t) * z_t + expand(0.5 * g2 / sigma(process, t), z_t) * eps_hat


def sample_prior(process: Process, key: Key, shape: tuple[int, ...]) -> Latents:
    """Draws z_1."""
    return jnp.sqrt(process.prior_variance()) * jax.random.normal(key, shape)


def prior_log_prob(process: Process, z_1: Latents) -> PerSample:
    """Log density of the prior at z_1, nats, summed over the latent."""
    prior_variance = process.prior_variance()
    return -0.5 * sum_per_sample(z_1**2 / prior_variance + jnp.log(2.0 * jnp.pi * prior_variance))


def noise_entropy(process: Process, t: Scalars) -> Scalars:
    """Entropy per dimension of z_t given z_0, (1 + log 2 pi sigma^2) / 2: LSGM's constant (D6, Theorem 1)."""
    return 0.5 * (1.0 + jnp.log(2.0 * jnp.pi) + process.log_variance(t))
