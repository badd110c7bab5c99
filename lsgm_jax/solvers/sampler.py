"""From noise to data: any solver, on any process, by one call of diffrax."""

import dataclasses
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
from lsgm_jax.solvers.grids import Grid, Times
from lsgm_jax.solvers.integrate import (
    Adaptive,
    Integral,
    SavedTimes,
    Tree,
    integrate_adaptively,
    integrate_on,
)
from lsgm_jax.solvers.method import Method
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.terms import (
    Time,
    Diffusion,
    GridPath,
    KeyedNoise,
    Noise,
    Problem,
    Reverse,
    by_rows,
    reverse_drift_term,
    times_like,
)

TSIT5, ADAPTIVE = METHODS["Tsit5"](), Adaptive()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """A solver, its steps, and how it starts and ends.

    Attributes:
        t_min: where the integration towards the data stops.
        denoise: what follows: "none"; "euler", a step of the reverse SDE's drift to t = 0 (CLD-SGM's); or "mean", the
            expected data given the last state. Either takes one more evaluation.
        temperature: factor of the noise that sampling starts from.
        guidance: how much conditions are exaggerated (see `guide`); 1 for not at all, 0 to leave them aside.

    Raises:
        ValueError: for adaptive steps of a solver without error estimate, or a bad number.
    """

    method: Method = TSIT5
    steps: Adaptive | Grid = ADAPTIVE
    t_min: float = 1e-5
    denoise: str = "none"
    temperature: float = 1.0
    guidance: float = 1.0

    def __post_init__(self):
        if isinstance(self.steps, Adaptive) and not self.method.adaptive:
            raise ValueError(
                f"solver {self.method.name!r} has no error estimate to adapt its steps: give a number of steps"
            )
        if not 0.0 <= self.t_min < 1.0:
            raise ValueError(f"t_min={self.t_min}: give a time in [0, 1)")
        if self.denoise not in ("none", "euler", "mean"):
            raise ValueError(f"denoise={self.denoise!r} is none of none, euler, mean")
        if self.temperature <= 0.0:
            raise ValueError(f"temperature={self.temperature}: give a positive number")
        if self.guidance < 0.0:
            raise ValueError(f"guidance={self.guidance}: give 0 or more")


class Solution(NamedTuple):
    """Latents at time 0 and what they cost."""

    z_0: Latents
    nfe: Int[Array, ""]  # evaluations of the network on the batch: rejected steps and denoising included
    nfe_mean: Float[Array, ""]  # mean over samples of what each alone would have needed
    nfe_denoise: Int[Array, ""]  # those of `nfe` that the denoising step made
    success: Bool[Array, "batch"]


def draw_noise(sampler: Sampler, process: Process, key: Key, shape: tuple[int, ...]) -> State:
    """z_1 from the prior, at the sampler's temperature.

    Args:
        shape: [batch, ...] of the latents.
    """
    z_1 = sample_prior(process, key, shape)
    return jax.tree.map(lambda z: sampler.temperature * z, z_1)


def slerp(a: State, b: State, share: PerSample) -> State:
    """Noise between `a` and `b` on the great circle through each pair of samples, whose norm noise keeps.

    Args:
        share: 0 for a, 1 for b.
    """

    def between(a: Latents, b: Latents) -> Latents:
        cosine = sum_per_sample(a * b) / jnp.sqrt(sum_per_sample(a**2) * sum_per_sample(b**2))
        angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
        # Parallel noise has no circle to follow; the line is its limit.
        line = jnp.sin(angle) < 1e-6
        safe = jnp.where(line, 1.0, angle)
        weights = (
            jnp.where(line, part, jnp.sin(part * safe) / jnp.sin(safe)) for part in (1.0 - share, share)
        )
        of_a, of_b = (expand(weight, a) for weight in weights)
        return of_a * a + of_b * b

    return jax.tree.map(between, a, b)


def sample(sampler: Sampler, process: Process, eps_net: EpsNet, key: Key, shape: tuple[int, ...]) -> Solution:
    """Draws z_1 from the prior and carries it to the data.

    Args:
        eps_net: noise prediction (z_t [batch, ...], t [batch]) -> [batch, ...].
        shape: [batch, ...] of the latents.
    """
    k_prior, k_noise = jax.random.split(key)
    z_1 = draw_noise(sampler, process, k_prior, shape)
    return solve_to_data(sampler, process, eps_net, z_1, KeyedNoise(k_noise))


def solve_to_data(sampler: Sampler, process: Process, eps_net: EpsNet, z_1: State, noise: Noise) -> Solution:
    """Carries z_1 to the data.

    Args:
        noise: of the solvers that draw some, for every step.

    Raises:
        ValueError: if the solver cannot integrate the process; names what can.
    """
    solution, _ = carry_to_data(sampler, process, eps_net, z_1, noise)
    return solution


def carry_to_data(
    sampler: Sampler,
    process: Process,
    eps_net: EpsNet,
    z_1: State,
    noise: Noise,
    keep: SavedTimes | None = None,
) -> tuple[Solution, Tree]:
    """As `solve_to_data`, and the states at the decreasing times `keep`, [times, batch, ...]; None without them."""
    if (refusal := sampler.method.refuse(process)) is not None:
        raise ValueError(refusal)
    solved = _integrate(sampler, Problem(process, eps_net, noise), z_1, keep)
    z_0, extra = _denoise(sampler, process, eps_net, solved.end)
    batch, single = solved.evaluations
    mean = jnp.mean(single.astype(z_0.dtype))
    return Solution(z_0, batch + extra, mean + extra, jnp.asarray(extra), solved.success), solved.kept


def solve_to_noise(sampler: Sampler, process: Process, eps_net: EpsNet, key: Key, z_0: Latents) -> State:
    """The z_1 that the probability flow carries to z_0: its code. `solve_to_data` with an ODE solver is the way back.

    Args:
        key: of the velocity, for processes that have one; positions alone do not determine z_1.

    Raises:
        ValueError: if the solver does not integrate ODEs.
    """
    require_ode(sampler.method)
    start, _ = add_auxiliary(process, key, z_0, sampler.t_min)

    def vector_field(t: Time, z_t: State, eps_net: EpsNet) -> State:
        times = times_like(z_t, t)
        return probability_flow(process, z_t, eps_net(z_t, times), times)

    return follow(sampler, process, diffrax.ODETerm(vector_field), start, by_rows(eps_net)).end


def follow(
    sampler: Sampler, process: Process, term: diffrax.ODETerm, start: Tree, args: Tree = None
) -> Integral:
    """Integrates an ODE in t from the data, at t_min, to the noise, at 1."""
    method, steps = sampler.method, sampler.steps
    if isinstance(steps, Adaptive):
        return integrate_adaptively(method, steps, term, start, sampler.t_min, 1.0, args)
    return integrate_on(method, steps.times(process, sampler.t_min)[::-1], term, start, args)


def require_ode(method: Method) -> None:
    """Refuses anything but a solver of ODEs.

    Raises:
        ValueError: if it is not one; names one that is.
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
    if method.dynamics != "sde":
        return integrate_on(method, taus, Reverse(problem), z_1, eps_net, keep)
    last = coordinates(z_1)[-1]
    like = jax.ShapeDtypeStruct(last.shape, last.dtype)
    path = GridPath(taus=taus.astype(last.dtype), problem=problem, like=like)
    terms = diffrax.MultiTerm(reverse_drift_term(problem), Diffusion(problem, path))
    return integrate_on(method, taus, terms, z_1, eps_net, keep)


def _last_time(sampler: Sampler) -> float:
    return sampler.steps.values[-1] if isinstance(sampler.steps, Times) else sampler.t_min


def _denoise(sampler: Sampler, process: Process, eps_net: EpsNet, z_t: State) -> tuple[Latents, int]:
    """The data for the state at t_min, and the evaluations that it takes."""
    x = coordinates(z_t)[0]
    if sampler.denoise == "none":
        return x, 0
    t = jnp.full(len(x), _last_time(sampler), x.dtype)
    eps_hat = eps_net(z_t, t)
    if sampler.denoise == "mean":
        return expected_data(process, z_t, eps_hat, t), 1
    drift = coordinates(reverse_drift(process, z_t, eps_hat, t))[0]
    return x - _last_time(sampler) * drift, 1
