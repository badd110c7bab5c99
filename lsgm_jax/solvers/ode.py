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

from lsgm_jax.arrays import EpsNet, Key, Latents, PerSample, State, coordinates
from lsgm_jax.diffusions.linear import (
    Process,
    add_auxiliary,
    prior_log_prob,
    probability_flow,
    sample_prior,
)
from lsgm_jax.solvers.nfe import EVALUATIONS, CountingController, EarlyRejections, evaluations

Tree = Any  # what a solve carries: a state, or a state and its log-density, of one sample


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

    def field(tau: Float[Array, ""], z: Tree) -> Tree:
        return jax.tree.map(jnp.negative, _velocity(process, eps_net, z, 1.0 - tau))

    z_0, cost = _solve(solver, field, sample_prior(process, key, shape), 0.0, 1.0 - solver.t_min)
    return Solution(coordinates(z_0)[0], *cost)


def log_density(
    solver: ODESolver, process: Process, eps_net: EpsNet, key: Key, z_0: Latents, probes: int = 1
) -> LogDensity:
    """Density of z_0: log prior(z_1) + int div dt along the probability-flow ODE from t_min to 1 (S3).

    A process with a velocity draws one and subtracts its log density: the mean over draws is a lower bound (S4).
    The divergence is Hutchinson's estimate with `probes` Rademacher vectors per sample that stay fixed during
    the solve, so the solver integrates a smooth function.
    """
    k_probes, k_auxiliary = jax.random.split(key)
    state, auxiliary_log_prob = add_auxiliary(process, k_auxiliary, z_0)
    vectors = _rademacher(k_probes, state, probes)

    def field(t: Float[Array, ""], carried: Tree, vectors: Tree) -> Tree:
        velocity, push_forward = jax.linearize(lambda z: _velocity(process, eps_net, z, t), carried[0])
        traces = jax.vmap(lambda v: _inner(v, push_forward(v)))(vectors)
        return velocity, jnp.mean(traces)

    start = (state, jnp.zeros(len(z_0), z_0.dtype))
    (z_1, int_divergence), cost = _solve(solver, field, start, solver.t_min, 1.0, vectors)
    log_prob = prior_log_prob(process, z_1) + int_divergence - auxiliary_log_prob
    return LogDensity(log_prob, cost.nfe, cost.success)


def _velocity(process: Process, eps_net: EpsNet, z: Tree, t: Float[Array, ""]) -> Tree:
    """The probability flow of one sample."""
    z_t, t = jax.tree.map(lambda value: value[None], (z, t))
    return jax.tree.map(lambda value: value[0], probability_flow(process, z_t, eps_net(z_t, t), t))


def _rademacher(key: Key, state: State, probes: int) -> Tree:
    """`probes` vectors of random signs like each sample of `state`."""
    values, structure = jax.tree.flatten(state)
    keys = jax.random.split(key, len(values))
    return structure.unflatten(
        jax.random.rademacher(k_value, (len(value), probes, *value.shape[1:]), value.dtype)
        for k_value, value in zip(keys, values, strict=True)
    )


def _inner(left: Tree, right: Tree) -> Float[Array, ""]:
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), left, right)
    return jax.tree.reduce(jnp.add, products)


def _solve(
    solver: ODESolver,
    field: Callable[..., Tree],
    start: Tree,
    begin: float,
    end: float,
    *per_sample: Tree,
) -> tuple[Tree, _Cost]:
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

    def solve_one(state: Tree, *args: Tree) -> diffrax.Solution:
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
