"""log p(z_0) by the instantaneous change of variables along the probability-flow ODE (S2, S3)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lsgm_jax.arrays import EpsNet, Key, Latents, PerSample, State
from lsgm_jax.diffusions.linear import Process, add_auxiliary, prior_log_prob, probability_flow
from lsgm_jax.solvers.integrate import Tree
from lsgm_jax.solvers.sampler import Sampler, follow, require_ode
from lsgm_jax.solvers.terms import Clock, times_like


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
    """How the divergence of the flow is found.

    Attributes:
        name: "rademacher" or "gaussian": Hutchinson's estimate with that many `probes` per sample, which stay fixed
            during the solve, so that the solver integrates a smooth function; or "exact": one product with the Jacobian
            per dimension and coordinate.
        probes: vectors per sample.
    """

    name: str = "rademacher"
    probes: int = 1

    def __post_init__(self):
        if self.name not in ("rademacher", "gaussian", "exact"):
            raise ValueError(f"name={self.name!r} is none of rademacher, gaussian, exact")
        if self.probes < 1:
            raise ValueError(f"probes={self.probes}: give a positive number")

    def vectors(self, key: Key, state: State) -> Tree:
        """Vectors v with mean v v^T = I, times their number for the exact divergence, [batch, number, ...]."""
        if self.name == "exact":
            return _unit_vectors(state)
        draw = jax.random.rademacher if self.name == "rademacher" else jax.random.normal
        values, structure = jax.tree.flatten(state)
        keys = jax.random.split(key, len(values))
        return structure.unflatten(
            draw(k_value, (len(value), self.probes, *value.shape[1:]), value.dtype)
            for k_value, value in zip(keys, values, strict=True)
        )


RADEMACHER = Divergence()


class LogDensity(NamedTuple):
    """log p(z_0), nats, and what it cost."""

    log_prob: PerSample
    nfe: Int[Array, ""]  # evaluations of the network on the batch
    products: Int[Array, ""]  # of a vector with its Jacobian, on the batch: the cost beside those evaluations
    success: Bool[Array, "batch"]


def _with_divergence(
    process: Process, eps_net: EpsNet, divergence: Divergence
) -> Callable[[Clock, Tree, Tree], Tree]:
    """The probability flow in t of (z, int div dt), given the vectors of the divergence."""
    combine = jnp.sum if divergence.name == "exact" else jnp.mean

    def vector_field(t: Clock, y: Tree, vectors: Tree) -> Tree:
        times = times_like(y[0], t)
        flow = lambda z: probability_flow(process, z, eps_net(z, times), times)
        velocity, push_forward = jax.linearize(flow, y[0])
        # One product for the whole batch per vector: samples do not see each other.
        traces = jax.vmap(lambda v: _inner(v, push_forward(v)), in_axes=1)(vectors)
        return velocity, combine(traces, axis=0)

    return vector_field


def log_density(
    sampler: Sampler,
    process: Process,
    eps_net: EpsNet,
    key: Key,
    z_0: Latents,
    divergence: Divergence = RADEMACHER,
) -> LogDensity:
    """Density of z_0: log prior(z_1) + int div dt along the probability-flow ODE from t_min to 1 (S3).

    A process with a velocity draws one and subtracts its log density: the mean over draws is a lower bound (S4).

    Args:
        sampler: its solver, which has to be one of ODEs, and its steps.

    Raises:
        ValueError: if the solver does not integrate ODEs.
    """
    require_ode(sampler.method)
    k_vectors, k_auxiliary = jax.random.split(key)
    state, auxiliary_log_prob = add_auxiliary(process, k_auxiliary, z_0, sampler.t_min)
    vectors = divergence.vectors(k_vectors, state)
    term = diffrax.ODETerm(_with_divergence(process, eps_net, divergence))
    start = (state, jnp.zeros(len(z_0), z_0.dtype))
    solved = follow(sampler, process, term, start, vectors)
    z_1, int_divergence = solved.end
    log_prob = prior_log_prob(process, z_1) + int_divergence - auxiliary_log_prob
    nfe = solved.evaluations.batch
    return LogDensity(log_prob, nfe, nfe * jax.tree.leaves(vectors)[0].shape[1], solved.success)


def _inner(left: Tree, right: Tree) -> PerSample:
    """Products per sample."""
    products = jax.tree.map(lambda a, b: jnp.sum((a * b).reshape(len(a), -1), axis=1), left, right)
    return jax.tree.reduce(jnp.add, products)


def _unit_vectors(state: State) -> Tree:
    """Every unit vector of one sample's state, for each sample: [batch, dims, ...]."""
    one = jax.tree.map(lambda value: value[0], state)
    flat, restore = jax.flatten_util.ravel_pytree(one)
    basis = jax.vmap(restore)(jnp.eye(flat.size, dtype=flat.dtype))
    batch = len(jax.tree.leaves(state)[0])
    return jax.tree.map(lambda v: jnp.broadcast_to(v, (batch, *v.shape)), basis)
