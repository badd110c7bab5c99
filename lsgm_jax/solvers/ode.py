"""The probability-flow ODE, solved by diffrax: sampling and log-densities.

Each sample has its own adaptive step size (the solve is vmapped; the network still runs on the whole batch, for
as many steps as the hardest sample needs). Sampling integrates tau = 1 - t forward, never time backward: some
diffrax solvers are silently wrong with negative steps.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lsgm_jax.arrays import EpsNet, Key, Latents, PerSample
from lsgm_jax.diffusions.linear import Process, prior_log_prob, probability_flow, sample_prior
from lsgm_jax.solvers.nfe import EVALUATIONS, CountingController, EarlyRejections, evaluations

State = Any  # a tree of arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class ODESolver:
    """A diffrax ODE solver by name with its step sizes.

    Attributes:
        name: a key of `nfe.EVALUATIONS`.
        rtol, atol: tolerances of the adaptive step size, used when `steps` is 0.
        steps: number of equal steps; 0 for adaptive ones.
        t_min: where the integration towards the data stops.
        max_steps: attempted steps after which an adaptive solve is given up as failed.

    Raises:
        ValueError: for an unknown name, or a solver without error estimate and without `steps`.
    """

    name: str = "Tsit5"
    rtol: float = 1e-5
    atol: float = 1e-5
    steps: int = 0
    t_min: float = 1e-5
    max_steps: int = 4096

    def __post_init__(self):
        if self.name not in EVALUATIONS:
            raise ValueError(f"unknown solver {self.name!r}: choose one of {', '.join(EVALUATIONS)}")
        if self.steps == 0 and self.name == "Euler":
            raise ValueError(
                "solver 'Euler' has no error estimate to adapt its steps: give a number of steps"
            )
        if self.steps < 0:
            raise ValueError(f"steps={self.steps}: give a positive number, or 0 for adaptive steps")
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol={self.rtol}, atol={self.atol}: tolerances must be positive")


class Solution(NamedTuple):
    """Latents at time 0 and what they cost."""

    z_0: Latents
    nfe: Int[Array, ""]  # evaluations of the network on the batch, rejected steps included
    nfe_mean: Float[Array, ""]  # mean over samples of what each alone would have needed
    success: Bool[Array, "batch"]


class LogDensity(NamedTuple):
    """log p(z_0) by the instantaneous change of variables, nats."""

    log_prob: PerSample
    nfe: Int[Array, ""]  # evaluations of network and divergence on the batch
    success: Bool[Array, "batch"]


class _Cost(NamedTuple):
    nfe: Int[Array, ""]
    nfe_mean: Float[Array, ""]
    success: Bool[Array, "batch"]


def solve_to_data(
    solver: ODESolver, process: Process, eps_net: EpsNet, key: Key, shape: tuple[int, ...]
) -> Solution:
    """Draws z_1 from the prior and carries it to t_min along the probability-flow ODE.

    Args:
        eps_net: noise prediction (z_t [batch, ...], t [batch]) -> [batch, ...].
        shape: [batch, ...] of the latents.
    """

    def field(tau: Float[Array, ""], z: Float[Array, "*latent"]) -> Float[Array, "*latent"]:
        t = (1.0 - tau)[None]
        return -probability_flow(process, z[None], eps_net(z[None], t), t)[0]

    z_0, cost = _solve(solver, field, sample_prior(process, key, shape), 0.0, 1.0 - solver.t_min)
    return Solution(z_0, *cost)


def log_density(
    solver: ODESolver, process: Process, eps_net: EpsNet, key: Key, z_0: Latents, probes: int = 1
) -> LogDensity:
    """Density of z_0: log prior(z_1) + int div dt along the probability-flow ODE from t_min to 1 (S3).

    The divergence is Hutchinson's estimate with `probes` Rademacher vectors per sample that stay fixed during
    the solve, so the solver integrates a smooth function.
    """
    probe_shape = (len(z_0), probes, *z_0.shape[1:])
    vectors = jax.random.rademacher(key, probe_shape, z_0.dtype)

    def field(t: Float[Array, ""], state: State, vectors: Float[Array, "probes *latent"]) -> State:
        z, _ = state

        def flow(z: Float[Array, "*latent"]) -> Float[Array, "*latent"]:
            return probability_flow(process, z[None], eps_net(z[None], t[None]), t[None])[0]

        velocity, push_forward = jax.linearize(flow, z)
        divergence = jnp.mean(jax.vmap(lambda v: jnp.sum(v * push_forward(v)))(vectors))
        return velocity, divergence

    start = (z_0, jnp.zeros(len(z_0), z_0.dtype))
    (z_1, int_divergence), cost = _solve(solver, field, start, solver.t_min, 1.0, vectors)
    return LogDensity(prior_log_prob(process, z_1) + int_divergence, cost.nfe, cost.success)


def _solve(
    solver: ODESolver,
    field: Callable[..., State],
    start: State,
    begin: float,
    end: float,
    *per_sample: Array,
) -> tuple[State, _Cost]:
    """Integrates `field(s, state, *per_sample)` for every sample from `begin` to `end`."""
    scheme = getattr(diffrax, solver.name)()
    dtype = jax.tree.leaves(start)[0].dtype
    if solver.steps == 0:
        controller = diffrax.PIDController(rtol=solver.rtol, atol=solver.atol)
        dt0, max_steps = jnp.asarray(1e-3, dtype), solver.max_steps
    else:
        controller = diffrax.StepTo(jnp.linspace(begin, end, solver.steps + 1, dtype=dtype))
        dt0, max_steps = None, solver.steps
    term = diffrax.ODETerm(lambda s, state, args: field(s, state, *args))

    def solve_one(state: State, *args: Array) -> diffrax.Solution:
        return diffrax.diffeqsolve(
            term,
            scheme,
            jnp.asarray(begin, dtype),
            jnp.asarray(end, dtype),
            dt0,
            state,
            args,
            stepsize_controller=CountingController(controller),
            max_steps=max_steps,
            throw=False,
            saveat=diffrax.SaveAt(t1=True, controller_state=True),
        )

    solution = jax.vmap(solve_one)(start, *per_sample)
    early = cast(EarlyRejections, solution.controller_state).early
    nfe = evaluations(solver.name, solution.stats["num_steps"], early)
    success = solution.result == diffrax.RESULTS.successful
    final = jax.tree.map(lambda path: path[:, -1], solution.ys)
    return final, _Cost(nfe.batch, jnp.mean(nfe.single.astype(dtype)), success)
