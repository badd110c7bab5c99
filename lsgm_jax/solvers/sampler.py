"""Sampling from noise to data with any solver, on any process."""

import dataclasses
import math
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
    coordinates,
    expand,
    finite_per_sample,
    sum_per_sample,
)
from lsgm_jax.processes.linear import (
    Process,
    add_auxiliary,
    expected_data,
    probability_flow,
    reverse_drift,
    sample_prior,
)
from lsgm_jax.solvers.grids import GRIDS, Default, Grid, Times
from lsgm_jax.solvers.integrate import (
    Adaptive,
    BatchTree,
    Integral,
    SavedTimes,
    integrate_adaptively,
    integrate_on,
)
from lsgm_jax.solvers.method import Method
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.terms import (
    Diffusion,
    GridPath,
    KeyedNoise,
    Noise,
    Problem,
    Reverse,
    Time,
    by_rows,
    reverse_drift_term,
    times_like,
)

TSIT5, ADAPTIVE = METHODS["Tsit5"](), Adaptive()
FEW = 30  # steps; with more, all solvers are far from ruin on all grids


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A solver, its steps, and the settings of the first and the last step.

    Attributes:
        method: the solver.
        steps: `Adaptive`, or a grid of fixed steps; `Default` is replaced by the solver's own grid.
        t_min: time at which the integration towards the data stops.
        denoise: the denoising step after it: "none"; "euler", a step of the reverse SDE's drift to t = 0 (CLD-SGM); or
            "mean", the expected data given the last state. The latter two take one more evaluation.
        temperature: factor of the prior noise z_1.
        guidance: scale of classifier-free guidance (see `guide`); 1 for no guidance, 0 for unconditional samples.

    Raises:
        ValueError: for adaptive steps of a solver without error estimate, or a number out of range.
    """

    method: Method = TSIT5
    steps: Adaptive | Grid = ADAPTIVE
    t_min: float = 1e-5
    denoise: str = "none"
    temperature: float = 1.0
    guidance: float = 1.0

    def __post_init__(self):
        if isinstance(self.steps, Default):
            object.__setattr__(self, "steps", GRIDS[self.method.grid](steps=self.steps.steps))
        if isinstance(self.steps, Adaptive) and not self.method.adaptive:
            raise ValueError(
                f"solver {self.method.name!r} has no error estimate to adapt its steps: give a number of steps"
            )
        if not 0.0 <= self.t_min < 1.0:
            raise ValueError(f"t_min={self.t_min}: give a time in [0, 1)")
        if self.denoise not in ("none", "euler", "mean"):
            raise ValueError(f"denoise={self.denoise!r} is none of none, euler, mean")
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature}: give a positive, finite number")
        if not 0.0 <= self.guidance < math.inf:
            raise ValueError(f"guidance={self.guidance}: give a finite number, 0 or more")

    def caution(self, process: Process) -> str | None:
        """Returns why these steps are worse than as many of DDIM, and what helps; None if they are not."""
        names = {grid: name for name, grid in GRIDS.items()}
        if isinstance(self.steps, Adaptive) or self.steps.steps > FEW:
            return None
        return self.method.caution(process, names.get(type(self.steps), "times"))


class Solution(NamedTuple):
    """Latents at time 0, and the number of network evaluations (NFE).

    A sample that is not finite has not succeeded, whatever the solver says: fixed steps have no error estimate.
    """

    z_0: Latents
    nfe: Int[Array, ""]  # evaluations on the batch, including rejected steps and denoising
    nfe_mean: Float[Array, ""]  # mean over samples of the evaluations that each needs alone
    nfe_denoise: Int[Array, ""]  # evaluations of the denoising step, a part of `nfe`
    success: Bool[Array, "batch"]


def draw_noise(sampler: Sampler, process: Process, key: Key, shape: tuple[int, ...]) -> State:
    """Draws z_1 from the prior, scaled by the sampler's temperature.

    Args:
        shape: [batch, ...] of the latents.
    """
    z_1 = sample_prior(process, key, shape)
    return jax.tree.map(lambda z: sampler.temperature * z, z_1)


def slerp(a: State, b: State, share: PerSample) -> State:
    """Interpolates noise spherically, along the great circle through each pair of samples.

    Args:
        share: position between them, 0 for a and 1 for b.
    """

    def between(a: Latents, b: Latents) -> Latents:
        cosine = sum_per_sample(a * b) / jnp.sqrt(sum_per_sample(a**2) * sum_per_sample(b**2))
        angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
        # Parallel vectors define no circle; the straight line is the limit.
        line = jnp.sin(angle) < 1e-6
        safe = jnp.where(line, 1.0, angle)
        weights = (
            jnp.where(line, part, jnp.sin(part * safe) / jnp.sin(safe)) for part in (1.0 - share, share)
        )
        of_a, of_b = (expand(weight, a) for weight in weights)
        return of_a * a + of_b * b

    return jax.tree.map(between, a, b)


def sample(sampler: Sampler, process: Process, eps_net: EpsNet, key: Key, shape: tuple[int, ...]) -> Solution:
    """Draws z_1 from the prior and integrates it to the data.

    Args:
        eps_net: noise prediction (z_t [batch, ...], t [batch]) -> [batch, ...].
        shape: [batch, ...] of the latents.
    """
    k_prior, k_noise = jax.random.split(key)
    z_1 = draw_noise(sampler, process, k_prior, shape)
    return solve_to_data(sampler, process, eps_net, z_1, KeyedNoise(k_noise))


def solve_to_data(sampler: Sampler, process: Process, eps_net: EpsNet, z_1: State, noise: Noise) -> Solution:
    """Integrates z_1 to the data.

    Args:
        noise: the noise of every step, for stochastic solvers.

    Raises:
        ValueError: if the solver cannot integrate the process; names solvers that can.
    """
    solution, _ = solve_and_save(sampler, process, eps_net, z_1, noise)
    return solution


def solve_and_save(
    sampler: Sampler,
    process: Process,
    eps_net: EpsNet,
    z_1: State,
    noise: Noise,
    keep: SavedTimes | None = None,
) -> tuple[Solution, BatchTree]:
    """Integrates z_1 to the data as `solve_to_data` does, and saves states.

    Returns:
        The solution, and the states [times, batch, ...] at the decreasing times `keep`; None without `keep`.
    """
    if (refusal := sampler.method.refuse(process)) is not None:
        raise ValueError(refusal)
    solved = _integrate(sampler, Problem(process, eps_net, noise), z_1, keep)
    z_0, extra = _denoising_step(sampler, process, eps_net, solved.end)
    batch, single = solved.evaluations
    mean = jnp.mean(single.astype(z_0.dtype))
    success = solved.success & finite_per_sample(z_0)
    return Solution(z_0, batch + extra, mean + extra, jnp.asarray(extra), success), solved.saved


def solve_to_noise(sampler: Sampler, process: Process, eps_net: EpsNet, key: Key, z_0: Latents) -> State:
    """Encodes z_0 as noise: integrates the probability flow from z_0 to z_1. `solve_to_data` is the inverse.

    Args:
        key: of the velocity, for processes that have one; positions alone do not determine z_1.

    Returns:
        z_1; NaN for samples whose solve fails, so that nothing can be made of them.

    Raises:
        ValueError: if the solver does not integrate ODEs.
    """
    require_ode(sampler.method)
    start, _ = add_auxiliary(process, key, z_0, sampler.t_min)

    def vector_field(t: Time, z_t: State, eps_net: EpsNet) -> State:
        times = times_like(z_t, t)
        return probability_flow(process, z_t, eps_net(z_t, times), times)

    solved = follow(sampler, process, diffrax.ODETerm(vector_field), start, by_rows(eps_net))
    spoil = jnp.where(solved.success, 0.0, jnp.nan).astype(z_0.dtype)
    return jax.tree.map(lambda z: z + expand(spoil, z), solved.end)


def follow(
    sampler: Sampler, process: Process, term: diffrax.ODETerm, start: BatchTree, args: BatchTree = None
) -> Integral:
    """Integrates an ODE in t from the data at t_min to the noise at 1.

    Args:
        term: vector field (t, y, args).
        start: values at t_min, [batch, ...] each.
        args: arguments of the vector field, [batch, ...] each.
    """
    method, steps = sampler.method, sampler.steps
    if isinstance(steps, Adaptive):
        return integrate_adaptively(method, steps, term, start, sampler.t_min, 1.0, args)
    return integrate_on(method, steps.times(process, sampler.t_min)[::-1], term, start, args)


def require_ode(method: Method) -> None:
    """Checks that the method integrates ODEs.

    Raises:
        ValueError: if it does not; names a method that does.
    """
    if method.dynamics != "ode":
        raise ValueError(
            f"solver {method.name!r} does not integrate ODEs: use one that does, such as 'Tsit5'"
        )


def _integrate(sampler: Sampler, problem: Problem, z_1: State, keep: SavedTimes | None) -> Integral:
    method, steps = sampler.method, sampler.steps
    keep = None if keep is None else 1.0 - keep
    eps_net = by_rows(problem.eps_net)
    if isinstance(steps, Adaptive):
        return integrate_adaptively(
            method, steps, Reverse(problem), z_1, 0.0, 1.0 - sampler.t_min, eps_net, keep
        )
    taus = 1.0 - steps.times(problem.process, sampler.t_min)
    problem = dataclasses.replace(problem, steps=len(taus) - 1)
    if method.dynamics != "sde":
        return integrate_on(method, taus, Reverse(problem), z_1, eps_net, keep)
    last = coordinates(z_1)[-1]
    like = jax.ShapeDtypeStruct(last.shape, last.dtype)
    path = GridPath(taus=taus.astype(last.dtype), problem=problem, like=like)
    terms = diffrax.MultiTerm(reverse_drift_term(problem), Diffusion(problem, path))
    return integrate_on(method, taus, terms, z_1, eps_net, keep)


def _last_time(sampler: Sampler) -> float:
    return sampler.steps.values[-1] if isinstance(sampler.steps, Times) else sampler.t_min


def _denoising_step(sampler: Sampler, process: Process, eps_net: EpsNet, z_t: State) -> tuple[Latents, int]:
    """Returns the data for the state at t_min, and the number of evaluations."""
    x = coordinates(z_t)[0]
    if sampler.denoise == "none":
        return x, 0
    t = jnp.full(len(x), _last_time(sampler), x.dtype)
    eps_hat = eps_net(z_t, t)
    if sampler.denoise == "mean":
        return expected_data(process, z_t, eps_hat, t), 1
    drift = coordinates(reverse_drift(process, z_t, eps_hat, t))[0]
    return x - _last_time(sampler) * drift, 1
