"""Overhead of the solvers: wall time over NFE times the time of one network evaluation.

    python benchmarks/sampler_overhead.py [--steps=50] [--width=64] [--only=adaptive] [--clock=cpu] [--json]

Every solver with fixed steps integrates the same problem with the same network, and so does Tsit5 with adaptive steps,
one step size per sample, per batch, or by the hardest sample. Hand-written loops (`lax.scan`) of Euler, Heun and
Euler-Maruyama are compared with diffrax. Everything is compiled. Solvers are measured in turns, and the fastest of
several turns counts, because disturbances only ever slow a measurement; `--clock=cpu` takes the CPU seconds of the
process, which they slow less.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import State, coordinates
from lsgm_jax.models.score_model import in_channels
from lsgm_jax.nn.network import Network
from lsgm_jax.nn.unet import UNet
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.linear import Process, probability_flow, reverse_drift, sample_prior
from lsgm_jax.processes.vp import VP
from lsgm_jax.solvers.grids import Grid, Quadratic
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, sample

SHAPE, T_MIN, TURNS = (16, 8, 8, 4), 1e-3, 5
SOLVERS_OF_CLD = ("SSCS", "GDDIM")
PER = ("sample", "batch", "hardest")  # of the adaptive steps of Tsit5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Call = Callable[[], Any]
Clock = Callable[[], float]


def main() -> None:
    """Measures all solvers and prints a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--width", type=int, default=64, help="channels of the network")
    parser.add_argument("--only", choices=("fixed", "adaptive"), help="kind of steps; without it both")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.steps, options.width, options.only, CLOCKS[options.clock])
    evaluation = rows[0]["seconds_per_evaluation"]
    if options.json:
        print(json.dumps({"solvers": rows, "device": jax.devices()[0].device_kind}, allow_nan=False))
        return
    print(f"{options.steps} steps, one evaluation {1e3 * evaluation:.2f} ms, {jax.devices()[0].device_kind}")
    print(f"{'solver':28s}{'NFE':>6s}{'seconds':>10s}{'overhead':>10s}{'over scan':>11s}")
    for row in rows:
        scan = "" if row["over_scan"] is None else f"{row['over_scan']:.3f}"
        print(f"{row['name']:28s}{row['nfe']:6d}{row['seconds']:10.3f}{row['overhead']:10.3f}{scan:>11s}")


def measure(steps: int, width: int, only: str | None, clock: Clock) -> list[dict[str, Any]]:
    """Measures every solver and returns a row for each; `overhead` is seconds / (nfe * seconds_per_evaluation)."""
    problems = {name: Problem(process, width) for name, process in (("vp", VP()), ("cld", CLD()))}
    calls: dict[str, Call] = {f"network, {name}": problem.network() for name, problem in problems.items()}
    nfe: dict[str, int] = {}
    for name in METHODS if only != "adaptive" else ():
        problem = problems["cld" if name in SOLVERS_OF_CLD else "vp"]
        calls[name], nfe[name] = problem.solver(name, Quadratic(steps=steps))
    for name in LOOPS if only != "adaptive" else ():
        calls[f"scan, {name}"], nfe[f"scan, {name}"] = problems["vp"].loop(name, steps), nfe[name]
    for per in PER if only != "fixed" else ():
        name, adaptive = f"Tsit5, adaptive per {per}", Adaptive(rtol=1e-4, atol=1e-4, per=per)
        calls[name], nfe[name] = problems["vp"].solver("Tsit5", adaptive)
    seconds = take_turns(calls, clock)
    rows = []
    for name in nfe:
        one = seconds["network, cld" if name in SOLVERS_OF_CLD else "network, vp"]
        rows.append(
            {
                "name": name,
                "nfe": nfe[name],
                "seconds": seconds[name],
                "seconds_per_evaluation": one,
                "overhead": seconds[name] / (nfe[name] * one),
                "over_scan": seconds[name] / seconds[f"scan, {name}"] if name in LOOPS else None,
            }
        )
    return rows


def take_turns(calls: dict[str, Call], clock: Clock) -> dict[str, float]:
    """Returns the shortest of `TURNS` measurements of each function in seconds, after one that compiles."""
    best: dict[str, float] = {}
    for turn in range(TURNS + 1):
        for name, function in calls.items():
            # A single evaluation is too short for the clock and the dispatch.
            repeats = 50 if name.startswith("network") else 1
            start = clock()
            for _ in range(repeats):
                result = function()
            jax.block_until_ready(result)
            if turn:
                best[name] = min(best.get(name, float("inf")), (clock() - start) / repeats)
    return best


class Problem:
    """A process, a network with parameters, and an initial state."""

    def __init__(self, process: Process, width: int):
        self.process = process
        self.net = Network(UNet(SHAPE[-1], (width,), 1, (), 0.0))
        z_1 = sample_prior(process, jax.random.key(0), SHAPE)
        self.params = self.net.init(jax.random.key(1), in_channels(z_1), jnp.ones(1))
        self.z_1 = z_1

    def eps_net(self, params: Any) -> Callable[..., Any]:
        """Returns the noise prediction of the network."""
        return lambda z_t, t: self.net.apply(params, in_channels(z_t), t)

    def network(self) -> Call:
        """Returns a function that evaluates the network once."""
        evaluate = jax.jit(lambda params, z, t: self.eps_net(params)(z, t))
        t = jnp.full(SHAPE[0], 0.5)
        return lambda: evaluate(self.params, self.z_1, t)

    def solver(self, name: str, steps: Grid | Adaptive) -> tuple[Call, int]:
        """Returns a function that solves with the named solver and these steps, and its NFE."""
        sampler = Sampler(method=METHODS[name](), steps=steps, t_min=T_MIN)
        solve = jax.jit(lambda params, key: sample(sampler, self.process, self.eps_net(params), key, SHAPE))
        key = jax.random.key(2)
        return lambda: solve(self.params, key), int(solve(self.params, key).nfe)

    def loop(self, name: str, steps: int) -> Call:
        """Returns a function that takes the same steps in a hand-written loop."""
        taus = 1.0 - Quadratic(steps=steps).times(self.process, T_MIN)

        def solve(params: Any, key: jax.Array) -> State:
            k_prior, k_noise = jax.random.split(key)
            eps_net = self.eps_net(params)

            def step(z: State, times: tuple[jax.Array, ...]) -> tuple[State, None]:
                return LOOPS[name](self.process, eps_net, z, *times), None

            keys = jax.random.split(k_noise, steps)
            z_1 = sample_prior(self.process, k_prior, SHAPE)
            return jax.lax.scan(step, z_1, (taus[:-1], taus[1:], keys))[0]

        compiled = jax.jit(solve)
        return lambda: compiled(self.params, jax.random.key(2))


def _rate(process: Process, eps_net: Callable[..., Any], z: Any, tau: jax.Array, rate: Any) -> Any:
    t = jnp.full(SHAPE[0], 1.0 - tau)
    return -rate(process, z, eps_net(z, t), t)


def _euler(process: Process, eps_net: Any, z: Any, tau: jax.Array, end: jax.Array, key: jax.Array) -> Any:
    return z + (end - tau) * _rate(process, eps_net, z, tau, probability_flow)


def _heun(process: Process, eps_net: Any, z: Any, tau: jax.Array, end: jax.Array, key: jax.Array) -> Any:
    first = _rate(process, eps_net, z, tau, probability_flow)
    second = _rate(process, eps_net, z + (end - tau) * first, end, probability_flow)
    return z + 0.5 * (end - tau) * (first + second)


def _euler_maruyama(
    process: Process, eps_net: Any, z: Any, tau: jax.Array, end: jax.Array, key: jax.Array
) -> Any:
    noise = jax.random.normal(key, coordinates(z)[0].shape)
    drift = _rate(process, eps_net, z, tau, reverse_drift)
    return z + (end - tau) * drift + jnp.sqrt(end - tau) * process.diffusion(1.0 - tau) * noise


LOOPS = {"Euler": _euler, "Heun": _heun, "EulerMaruyama": _euler_maruyama}

if __name__ == "__main__":
    main()
