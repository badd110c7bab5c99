"""CLD's samplers, step by step, with the score of Gaussian data and recorded noise."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.exact_gaussian import exact_eps
from lsgm_jax.arrays import Phase
from lsgm_jax.processes import linear
from lsgm_jax.processes.cld import CLD
from lsgm_jax.solvers.grids import Linear, Quadratic
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, solve_to_data
from lsgm_jax.solvers.sscs import euler_kick, half_step
from lsgm_jax.solvers.terms import Problem
from tests.parity.cld import cld_process

GRIDS = {"linear": Linear, "quadratic": Quadratic}
DENOISED = {"denoised": 1, "not_denoised": 0}  # the step of denoising is one of n


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Noise of the fixture: [steps, batch, dims], or a phase with [steps, parts, batch, dims] each."""

    numbers: jax.Array | Phase

    def draw(self, step, part, like):
        if isinstance(like, Phase):
            return jax.tree.map(lambda values: values[step, part], self.numbers)
        return self.numbers[step]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoefficientsAtTheStart(CLD):
    """Every transition but the kernel takes beta from its end, where a step of the sampler starts."""

    def int_beta(self, s, t):
        return jnp.where(s == 0.0, super().int_beta(s, t), (t - s) * self.beta(t))


def phase(stacked):
    """Position and velocity are concatenated along the last axis."""
    return Phase(*jnp.split(stacked, 2, axis=-1))


def stacked(z):
    return np.concatenate(z, axis=-1)


def gaussian_data(fixture, process):
    """Noise prediction for the Gaussian data of the fixture, whose dimensions have moments of their own."""
    parameters = jnp.stack([fixture.input("in/data_mean"), fixture.input("in/data_var")])
    by_dimension = jax.vmap(
        lambda x, v, t, mean, variance: exact_eps(process, mean, variance)(Phase(x, v), t),
        in_axes=(1, 1, None, 0, 0),
        out_axes=1,
    )
    return lambda z_t, t: by_dimension(z_t.x, z_t.v, t, *parameters)


@contextlib.contextmanager
def precision_of(dtype):
    """For the thread that callbacks run in, too, which would round what they are handed."""
    jax.config.update("jax_enable_x64", dtype == jnp.float64)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def follow(sampler, problem, z_1):
    """The solution, and all states that the network was shown, in order; the last is the one that is denoised."""
    shown = []

    def watched(z_t, t):
        jax.debug.callback(shown.append, z_t)
        return problem.eps_net(z_t, t)

    sampler = dataclasses.replace(sampler, denoise="euler")
    solve = jax.jit(lambda z_1: solve_to_data(sampler, problem.process, watched, z_1, problem.noise))
    with precision_of(z_1.x.dtype):
        solution = jax.block_until_ready(solve(z_1))
        jax.effects_barrier()
    return solution, jax.tree.map(lambda *values: np.stack(values), *shown)


def check_end(fixture, folder, problem, last, solution, t_min, **tolerance):
    """The state at t_min, or what Euler's step makes of it; the solution has the position of that."""
    last = Phase(*map(jnp.asarray, last))
    if "not_denoised" in folder:
        return fixture.check(f"{folder}/final", stacked(last), **tolerance)
    t = jnp.full(len(last.x), t_min, last.x.dtype)
    _, drift = linear.reverse_drift(problem.process, last, problem.eps_net(last, t), t)
    final = Phase(solution.z_0, last.v - t_min * drift)
    fixture.check(f"{folder}/final", stacked(final), **tolerance)


def check_grid(fixture, folder, grid, problem, t_min, nfe):
    fixture.check(f"{folder}/times", 1.0 - grid.times(problem.process, t_min), atol=1e-15, single_atol=1e-6)
    fixture.check(f"{folder}/reported_nfe", nfe)


def check_euler_maruyama(fixture, folder, grid, problem, z_1, t_min, denoised):
    sampler = Sampler(method=METHODS["EulerMaruyama"](), steps=grid, t_min=t_min)
    solution, states = follow(sampler, problem, z_1)
    exact = {"rtol": 1e-11, "atol": 1e-11, "single_atol": 1e-5}
    check_grid(fixture, folder, grid, problem, t_min, int(solution.nfe) - 1 + denoised)
    fixture.check(f"{folder}/trajectory", stacked(states)[1:], **exact)
    mean = Phase(states.x[1:], states.v[1:] - euler_noise(problem, grid, t_min))
    fixture.check(f"{folder}/trajectory_mean_before_noise", stacked(mean), **exact)
    last = Phase(*(values[-1] for values in states))
    check_end(fixture, folder, problem, last, solution, t_min, **exact)


def euler_noise(problem, grid, t_min):
    """What every step adds to the velocity."""
    times = grid.times(problem.process, t_min)
    scale = problem.process.diffusion(times[:-1]) * jnp.sqrt(times[:-1] - times[1:])
    return scale[:, None, None] * problem.noise.numbers[: grid.steps]


def check_sscs(fixture, folder, grid, problem, z_1, t_min, denoised):
    """The network is shown what the first half of a step makes; the rest of the step is done here, by its parts."""
    sampler = Sampler(method=METHODS["SSCS"](order=1), steps=grid, t_min=t_min)
    solution, states = follow(sampler, problem, z_1)
    # The original's covariances of short half steps cancel.
    exact = {"rtol": 1e-8, "atol": 1e-8} if isinstance(grid, Quadratic) else {"rtol": 1e-11, "atol": 1e-11}
    exact["single_atol"] = 1e-5
    check_grid(fixture, folder, grid, problem, t_min, int(solution.nfe) - 1 + denoised)

    def rest(z, step, t, s):
        kicked = euler_kick(problem, z, t, t - s)
        eps = problem.noise.draw(step, 1, z)
        return kicked, half_step(problem.process, kicked, t, 0.5 * (t + s), eps)

    times = grid.times(problem.process, t_min)
    halves = Phase(*(jnp.asarray(values[:-1]) for values in states))
    kicked, ends = jax.jit(jax.vmap(rest))(halves, jnp.arange(grid.steps), times[:-1], times[1:])
    fixture.check(f"{folder}/trajectory_after_first_half", stacked(halves), **exact)
    fixture.check(f"{folder}/trajectory_after_score_step", stacked(kicked), **exact)
    fixture.check(f"{folder}/trajectory", stacked(ends), **exact)
    last = Phase(*(values[-1] for values in states))
    check_end(fixture, folder, problem, last, solution, t_min, **exact)


def check_ode(fixture, problem, z_1, t_min, tolerances):
    """Our tight solution against the original's adaptive ones, whose errors are a few of their tolerances."""
    tight = 1e-13 if z_1.x.dtype == jnp.float64 else 1e-6
    steps = Adaptive(rtol=tight, atol=tight, per="batch", max_steps=100_000)
    sampler = Sampler(method=METHODS["Dopri8"](), steps=steps, t_min=t_min)
    solution, states = follow(sampler, problem, z_1)
    last = Phase(*(values[-1] for values in states))
    for denoised in DENOISED:
        for tolerance in tolerances:
            folder = f"ode/{denoised}/tol_{tolerance:.0e}"
            close = {"rtol": 0.0, "atol": 30 * tolerance, "single_atol": 2e-5}
            check_end(fixture, folder, problem, last, solution, t_min, **close)
            # Quirk: evaluations of another adaptive method, rejections included.
            fixture.leave([f"{folder}/reported_nfe"])


def sscs_process(fixture, h, process, z_1, noise):
    """The process whose half steps are the original's: with a rate that varies, the first one recorded says which."""
    other = CoefficientsAtTheStart(**vars(process))
    if h["sde"]["beta1"] == 0.0:
        return process
    folder = "sscs/linear/not_denoised"
    times = 1.0 - jnp.asarray(fixture.arrays[f"out/{folder}/times"][:2], z_1.x.dtype)
    expected = fixture.arrays[f"out/{folder}/trajectory_after_first_half"][0]

    def error(process):
        z = half_step(process, z_1, times[0], 0.5 * (times[0] + times[1]), noise.draw(0, 0, z_1))
        return np.abs(stacked(z) - expected).max()

    return min(process, other, key=error)


def check_samplers(fixture):
    h = fixture.spec["hyper_parameters"]
    process, t_min = cld_process(h["sde"]), h["sampling_eps"]
    z_1 = phase(fixture.input("in/u0"))
    t, eps_net = fixture.input("in/score_check_t"), gaussian_data(fixture, process)
    score = linear.score_of_eps(process, eps_net(phase(fixture.input("in/score_check_u")), t), t)
    fixture.check("score_check", score, rtol=1e-9, atol=1e-9, single_atol=1e-4)

    euler_noise = Recorded(phase(fixture.input("in/em_noise")).v)
    half_noise = Recorded(phase(fixture.input("in/sscs_noise")))
    halves = sscs_process(fixture, h, process, z_1, half_noise)
    for denoised, spent in DENOISED.items():
        for striding, make in GRIDS.items():
            grid, folder = make(steps=h["n_discrete_steps"] - spent), f"{striding}/{denoised}"
            problem = Problem(process, eps_net, euler_noise)
            check_euler_maruyama(fixture, f"em/{folder}", grid, problem, z_1, t_min, spent)
            problem = Problem(halves, gaussian_data(fixture, halves), half_noise)
            check_sscs(fixture, f"sscs/{folder}", grid, problem, z_1, t_min, spent)
    check_ode(fixture, Problem(process, eps_net, euler_noise), z_1, t_min, h["ode_tolerances"])


CHECKS = {"samplers": check_samplers}
