"""Log-likelihood log p(z_0) by the instantaneous change of variables along the probability-flow ODE (S2, S3)."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lsgm_jax.arrays import (
    EpsNet,
    Key,
    Latents,
    PerSample,
    State,
    as_state,
    coordinates,
    draw_array,
    finite_per_sample,
    sum_per_sample,
)
from lsgm_jax.processes.linear import Process, add_auxiliary, prior_log_prob, probability_flow
from lsgm_jax.solvers.sampler import Sampler, follow, require_ode
from lsgm_jax.solvers.terms import Time, by_rows, times_like

Vectors = Float[Array, "batch vectors *latent"]
FlowState = tuple[State, PerSample]  # z_t, and the integral of the divergence up to t


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
    """Estimator of the divergence of the flow.

    Attributes:
        name: "rademacher" or "gaussian" for Hutchinson's estimator, whose probes are fixed during a solve, so that the
            solver integrates a smooth function; "exact" for one Jacobian-vector product per dimension.
        probes: number of probes per sample, for Hutchinson's estimator.
    """

    name: str = "rademacher"
    probes: int = 1

    def __post_init__(self):
        if self.name not in ("rademacher", "gaussian", "exact"):
            raise ValueError(f"name={self.name!r} is none of rademacher, gaussian, exact")
        if self.probes < 1:
            raise ValueError(f"probes={self.probes}: give a positive number")

    def vectors(self, key: Key, like: Latents) -> Vectors:
        """Returns probes v, whose mean of v v^T is I; for the exact divergence the unit vectors, whose sum is I."""
        batch, *shape = like.shape
        if self.name == "exact":
            size = math.prod(shape)
            return jnp.broadcast_to(
                jnp.eye(size, dtype=like.dtype).reshape(size, *shape), (batch, size, *shape)
            )
        sampler = jax.random.rademacher if self.name == "rademacher" else jax.random.normal
        return draw_array(sampler, jax.random.split(key, 1)[0], (batch, self.probes, *shape), like.dtype)


RADEMACHER = Divergence()


class LogDensity(NamedTuple):
    """log p(z_0), nats, and the cost of its computation."""

    log_prob: PerSample
    nfe: Int[Array, ""]  # evaluations of the network on the batch
    products: Int[
        Array, ""
    ]  # Jacobian-vector products of the network on the batch, besides those evaluations
    success: Bool[Array, "batch"]


def _with_divergence(
    process: Process, divergence: Divergence
) -> Callable[[Time, FlowState, tuple[Vectors, EpsNet]], FlowState]:
    """Returns the vector field of (z, int div dt); its arguments are the probes and the noise prediction.

    The network enters the last coordinate alone, so only its Jacobian in that coordinate is needed (S2).
    """
    combine = jnp.sum if divergence.name == "exact" else jnp.mean

    def vector_field(t: Time, y: FlowState, args: tuple[Vectors, EpsNet]) -> FlowState:
        vectors, eps_net = args
        *others, last = coordinates(y[0])
        times = times_like(last, t)

        def flow(last: Latents) -> State:
            z = as_state([*others, last])
            return probability_flow(process, z, eps_net(z, times), times)

        velocity, push_forward = jax.linearize(flow, last)
        # One product serves the full batch, because samples do not depend on each other.
        along = lambda v: sum_per_sample(v * coordinates(push_forward(v))[-1])
        of_others = jnp.trace(process.drift(times)[:, :-1, :-1], axis1=1, axis2=2)
        return velocity, last[0].size * of_others + combine(jax.vmap(along, in_axes=1)(vectors), axis=0)

    return vector_field


def log_density(
    sampler: Sampler,
    process: Process,
    eps_net: EpsNet,
    key: Key,
    z_0: Latents,
    divergence: Divergence = RADEMACHER,
) -> LogDensity:
    """Returns log p(z_0) = log prior(z_1) + int div dt along the probability-flow ODE from t_min to 1, nats (S3).

    For a process with a velocity, a velocity is drawn and its log density is subtracted: the mean over draws is a lower
    bound (S4).

    Args:
        sampler: its solver, which must integrate ODEs, its steps and t_min.
        key: of the probes and the velocity.
        z_0: data [batch, ...].

    Raises:
        ValueError: if the solver does not integrate ODEs.
    """
    require_ode(sampler.method)
    k_vectors, k_auxiliary = jax.random.split(key)
    state, auxiliary_log_prob = add_auxiliary(process, k_auxiliary, z_0, sampler.t_min)
    vectors = divergence.vectors(k_vectors, z_0)
    term = diffrax.ODETerm(_with_divergence(process, divergence))
    start = (state, jnp.zeros(len(z_0), z_0.dtype))
    solved = follow(sampler, process, term, start, (vectors, by_rows(eps_net)))
    z_1, int_divergence = solved.end
    log_prob = prior_log_prob(process, z_1) + int_divergence - auxiliary_log_prob
    nfe = solved.evaluations.batch
    return LogDensity(log_prob, nfe, nfe * vectors.shape[1], solved.success & finite_per_sample(log_prob))
