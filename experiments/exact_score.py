"""The exact score of the Gaussian mixture in the plane, to study solver error without network error."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import EpsNet, Key, Latents, Scalar, State, Times, coordinates
from lsgm_jax.data.points import CENTRES, NARROW
from lsgm_jax.processes.linear import Process, kernel, sigma
from lsgm_jax.solvers.sampler import Sampler, sample


def exact_eps(process: Process) -> EpsNet:
    """Returns the noise prediction for the distribution `gaussians`: -sigma times the score of the last coordinate."""

    def log_density(z_t: State, t: Scalar) -> Scalar:
        """Computes log p_t of one sample up to a constant; each of the eight components has independent dimensions."""
        signal, noise = kernel(process, t)
        precision = jnp.linalg.inv(noise @ noise.T + NARROW**2 * jnp.outer(signal, signal))
        error = jnp.stack(coordinates(z_t), axis=-1) - jnp.asarray(CENTRES, jnp.float32)[:, :, None] * signal
        distance2 = jnp.einsum("mdi,ij,mdj->m", error, precision, error)
        return jax.nn.logsumexp(-0.5 * distance2)

    def predict(z_t: State, t: Times) -> Latents:
        score = coordinates(jax.vmap(jax.grad(log_density))(z_t, t))[-1]
        return -sigma(process, t)[:, None] * score

    return predict


def exact_draw(process: Process, sampler: Sampler, count: int) -> Callable[[Key], Latents]:
    """Returns a compiled function that draws samples of the mixture by a solver with the exact score."""
    return jax.jit(lambda key: sample(sampler, process, exact_eps(process), key, (count, 2)).z_0)
