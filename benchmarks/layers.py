"""Where a training step spends its time: convolutions and matrix products by kind, each timed alone, and the rest.

    python -m benchmarks.layers [--config=FILE[:ARG]] [--stage=NAME] [--turns=N] [--json] [--config.SECTION.KEY=VALUE]

The step is that of the config's last stage, or of the named one, on a random batch. Each of its distinct convolutions
and products is compiled and timed by itself, in CPU seconds of all threads, and counts as often as the step computes
it.

What remains of the measured step is "everything else": normalisation, nonlinearities, resampling, the optimiser.
The compiler fuses these, so that they can only be counted: their equations, and the numbers that they write. The rate
to compare with is that of a large matrix product, measured in the same run.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from benchmarks.training_step import Planned, Trial
from benchmarks.work import Kind, Operation, Work, work
from lsgm_jax.config.load import load_config

SHORTEST = 5e-3  # seconds of a measurement
SIDE = 2048  # of the matrices whose product is the peak
COLUMNS = ("layer", "pass", "distinct", "count", "GFLOP", "CPU ms", "GFLOP / CPU s", "share")


def main() -> None:
    """Measures a config's step and prints a table in Markdown, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--stage", help="default: the last one")
    parser.add_argument("--turns", type=int, default=3, help="measurements, of which the least counts")
    parser.add_argument("--json", action="store_true")
    options, overrides = parser.parse_known_args()
    planned = Planned(load_config(options.config, overrides), options.stage)
    found = measure(planned, options.turns)
    found |= {"config": options.config, "overrides": overrides, "batch_size": planned.batch_size}
    found["devices"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(json.dumps(found, allow_nan=False) if options.json else table(found))


def measure(planned: Planned, turns: int) -> dict[str, Any]:
    """Measures the peak, all operations of a step, and the step.

    Returns:
        "peak", FLOP per CPU s; "seconds" of the step; "rows" with the fields layer, pass, distinct, count, flops and
        seconds; "others" with the equations and the numbers written of each kind of the rest.
    """
    program = work(planned.step, planned.like, *planned.arguments)
    timed = [
        (operation, count, seconds(operation, turns))
        for operation, count in tqdm(program.operations, desc="operations", leave=False)
    ]
    trial = Trial(planned)
    return {
        "peak": peak(turns),
        "seconds": least_cpu_seconds(lambda: trial.take(1), turns) / planned.per_call,
        "rows": rows(timed, planned.per_call),
        "others": others(program, planned.per_call),
    }


def seconds(operation: Operation, turns: int) -> float:
    """Returns the CPU time of an operation by itself, on random arrays."""
    keys = jax.random.split(jax.random.key(0), len(operation.inputs))
    arrays = [
        jax.random.normal(key, each.shape, each.dtype)
        for key, each in zip(keys, operation.inputs, strict=True)
    ]
    call = jax.jit(operation.call).lower(*arrays).compile()
    return least_cpu_seconds(lambda: jax.block_until_ready(call(*arrays)), turns)


def least_cpu_seconds(call: Callable[[], Any], turns: int) -> float:
    """Returns the least CPU time of a call over the turns, each of at least `SHORTEST` in all."""
    call()
    calls, found = 1, []
    while len(found) < turns:
        start = time.process_time()
        for _ in range(calls):
            call()
        taken = time.process_time() - start
        if taken >= SHORTEST:
            found.append(taken / calls)
        else:
            calls = calls * 4 if taken < SHORTEST / 4 else calls * 2
    return min(found)


def peak(turns: int) -> float:
    """Returns the FLOP per CPU second of the product of two large matrices."""
    matrix = jnp.ones((SIDE, SIDE))
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    return 2 * SIDE**3 / least_cpu_seconds(lambda: jax.block_until_ready(product(matrix, matrix)), turns)


def rows(timed: list[tuple[Operation, int, float]], per_call: int) -> list[dict[str, Any]]:
    """Sums over kinds; the slowest kind comes first."""
    kinds: dict[Kind, dict[str, Any]] = {}
    for operation, count, each in timed:
        layer, passed = operation.kind
        start = {"layer": layer, "pass": passed, "distinct": 0, "count": 0.0, "flops": 0.0, "seconds": 0.0}
        row = kinds.setdefault(operation.kind, start)
        count /= per_call
        row["distinct"] += 1
        row["count"] += count
        row["flops"] += count * operation.flops
        row["seconds"] += count * each
    return sorted(kinds.values(), key=lambda row: -row["seconds"])


def others(program: Work, per_call: int) -> list[dict[str, Any]]:
    """Equations and written numbers of everything else, per step."""
    return [
        {"kind": kind, "equations": count / per_call, "written": program.written[kind] / per_call}
        for kind, count in sorted(program.others.items())
    ]


def table(found: dict[str, Any]) -> str:
    """The measurements in Markdown."""
    step, sums = found["seconds"], {"flops": 0.0, "seconds": 0.0, "count": 0.0, "distinct": 0}
    title = (
        f"{found['config']} {' '.join(found['overrides'])}, batch {found['batch_size']}: {found['devices']}"
    )
    lines = [title, "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for row in found["rows"]:
        lines.append(_line(row["layer"], row["pass"], row, step))
        sums = {name: sums[name] + row[name] for name in sums}
    lines.append(_line("all of these", "", sums, step))
    rest = step - sums["seconds"]
    lines += [f"| everything else | | | | | {1e3 * rest:,.1f} | | {rest / step:.1%} |"]
    lines += [f"| the step | | | | | {1e3 * step:,.1f} | {sums['flops'] / step / 1e9:,.1f} | 100 % |", ""]
    lines += [f"A product of {SIDE} x {SIDE} matrices: {found['peak'] / 1e9:,.1f} GFLOP / CPU s."]
    equations = (
        f"{each['equations']:,.0f} of {each['kind']} that write {each['written'] / 1e6:,.1f} million numbers"
        for each in found["others"]
    )
    return "\n".join([*lines, f"Everything else, before fusion, in equations: {', '.join(equations)}."])


def _line(layer: str, passed: str, row: dict[str, Any], step: float) -> str:
    rate = row["flops"] / max(row["seconds"], 1e-12)
    numbers = (
        f"{row['distinct']} | {row['count']:,.0f} | {row['flops'] / 1e9:,.2f} | {1e3 * row['seconds']:,.1f}"
    )
    return f"| {layer} | {passed} | {numbers} | {rate / 1e9:,.1f} | {row['seconds'] / step:.1%} |"


if __name__ == "__main__":
    main()
