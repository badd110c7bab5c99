"""Compiles a config's programs for TPUs that need not be there, and reports what they would do and how long that takes.

    python benchmarks/aot.py --config=FILE[:ARG] [--topology=v5e:4x4] [--parallel=data|fsdp]
        [--dtype=bfloat16|float32] [--what=step|sample|likelihood|all] [--stage=NAME] [--json]
        [--write=docs/results.md] [--config.SECTION.KEY=VALUE ...]

The programs are those that training, sampling and evaluation run: the training step of a stage, by default the last;
the solve of a batch of noise, and the likelihood of a batch, of config.eval.batch_size rounded up to the devices. They
are compiled from shapes alone, by `libtpu` (`pip install "jax[tpu]"`). `--topology=cpu:N` compiles for N CPU devices.

Loops of fixed steps count as often as they run; an adaptive solve counts one step, whose number is not known.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import topologies

from lsgm_jax.config.factory import Experiment, experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.errors import ConfigError, first_line
from lsgm_jax.evaluation.hlo import tally
from lsgm_jax.evaluation.model_size import flops_by_dtype
from lsgm_jax.evaluation.programs import Program, likelihood_of, sampler_of, step_of
from lsgm_jax.evaluation.roofline import CHIPS, Chip, bound

DAY = 86_400.0
LIBTPU = {  # what it otherwise looks for on the machine, with warnings where there is no TPU
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling takes no chip from another process
}
GIB = 2**30
PROGRAMS: dict[str, Callable[[Experiment, Any, str | None], Program]] = {
    "step": step_of,
    "sample": lambda planned, devices, stage: sampler_of(planned, devices),
    "likelihood": lambda planned, devices, stage: likelihood_of(planned, devices),
}
COLUMNS = (
    *("config", "program", "topology", "rows", "GiB per chip", "TFLOP per chip", "bound, ms", "limited by"),
    *("compiler, ms", "MFU", "days", "compiled in, s"),
)
HEADER = f"| {' | '.join(COLUMNS)} |"


def main() -> None:
    """Compiles, prints a report of each program or JSON, and writes rows into a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--topology", default="v5e:4x4", help="of chips, such as v5e:4x4, or cpu:N")
    parser.add_argument("--parallel", choices=("data", "fsdp"))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"))
    parser.add_argument("--what", choices=(*PROGRAMS, "all"), default="step")
    parser.add_argument("--stage", help="of training; by default the last")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=pathlib.Path, help="a file in Markdown whose table gets the rows")
    options, overrides = parser.parse_known_args()
    chosen = {"parallel.name": options.parallel, "compute.dtype": options.dtype}
    overrides = [*(f"--config.{key}={value}" for key, value in chosen.items() if value), *overrides]
    try:
        devices = devices_of(options.topology)
        planned = experiment(load_config(options.config, overrides))
        chip = CHIPS.get(options.topology.partition(":")[0])
        likely = planned.model.bound is not None and planned.sampler.method.dynamics == "ode"
        of_all = [program for program in PROGRAMS if likely or program != "likelihood"]
        names = of_all if options.what == "all" else [options.what]
        name = " ".join(
            [options.config.removeprefix("configs/"), *(o.removeprefix("--config.") for o in overrides)]
        )
        for program in names:
            row = {"config": name, "program": program, "topology": options.topology}
            row |= measure(PROGRAMS[program](planned, devices, options.stage), chip)
            print(json.dumps(row, allow_nan=False) if options.json else report(row), flush=True)
            if options.write:
                write_row(options.write, row)
    except ConfigError as error:
        sys.exit(f"error: {error}")


def devices_of(topology: str) -> tuple[Any, ...]:
    """Returns the devices of a topology, neighbours next to each other.

    Raises:
        ConfigError: if there is no such topology, or no libtpu to compile for it.
    """
    kind, _, size = topology.partition(":")
    jax.config.update("jax_platforms", "cpu")
    if kind == "cpu":
        if not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"--topology={topology}: give a number of devices, such as cpu:8")
        jax.config.update("jax_num_cpu_devices", int(size))
        return tuple(jax.devices())
    if kind not in CHIPS:
        raise ConfigError(f"--topology={topology}: {kind} is none of {', '.join(CHIPS)}, cpu")
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    # The two cores of a v4 act as one, as in a program that runs there.
    more = {"chip_config_name": "megacore"} if kind == "v4" else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise ConfigError('compiling for TPUs takes libtpu: pip install "jax[tpu]"') from error
        raise ConfigError(f"--topology={topology}: {first_line(error)}") from error
    mesh = topologies.make_mesh(described, (len(described.devices),), ("data",))
    return tuple(mesh.devices.flat)


def measure(program: Program, chip: Chip | None) -> dict[str, Any]:
    """Compiles a program and returns its figures; those of time and bandwidth only for a known chip."""
    row: dict[str, Any] = {"chips": program.devices, "rows": program.rows, "note": program.note}
    with progress("tracing and lowering") as clock:
        traced = program.trace()
        lowered = traced.lower()
    row["lowered_in"] = clock()
    try:
        with progress("compiling") as clock:
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"does_not_fit": first_line(error)}
    row["compiled_in"] = clock()
    memory, counted = compiled.memory_analysis(), tally(compiled.as_text(), program.trips)
    cost = compiled.cost_analysis() or {}
    parts = {
        name: getattr(memory, f"{name}_size_in_bytes")
        for name in ("argument", "output", "alias", "temp", "generated_code")
    }
    written = flops_by_dtype(traced.jaxpr.jaxpr, program.trips)
    row |= {
        "bytes": parts | {"total": sum(parts.values()) - 2 * parts["alias"]},
        "xla_flops": cost.get("flops", 0.0),
        "xla_bytes": cost.get("bytes accessed", 0.0),
        "flops_by_dtype": {dtype: count / program.devices for dtype, count in written.items()},
        "hbm_bytes": counted.hbm_bytes,
        "collectives": {kind: dataclasses.asdict(traffic) for kind, traffic in counted.collectives.items()},
        "products": {f"{opcode} {dtypes}": count for (opcode, dtypes), count in counted.products.items()},
        "converts": counted.converts,
        "copies": counted.copies,
        "copy_bytes": counted.copy_bytes,
        "loops": counted.loops,
    }
    return row | (times(row, counted.cycles, program, chip) if chip else {})


def times(row: dict[str, Any], cycles: int, program: Program, chip: Chip) -> dict[str, Any]:
    """Returns what the figures say about the time of a call and of the schedule."""
    flops, sent = sum(row["flops_by_dtype"].values()), sum(t["sent"] for t in row["collectives"].values())
    least = bound(chip, flops, row["hbm_bytes"], sent)
    estimate = max(least.seconds, cycles / chip.hertz + least.links)
    return {
        "hbm_gib": chip.hbm_gib,
        "bound": least._asdict() | {"seconds": least.seconds, "limit": least.limit},
        "compiler_seconds": estimate,
        "mfu_bound": flops / chip.flops / least.seconds,
        "mfu_compiler": flops / chip.flops / estimate,
        "days": program.steps * estimate / DAY,
    }


def report(row: dict[str, Any]) -> str:
    """Returns the figures of a program as text."""
    gib = lambda count: f"{count / GIB:.3f} GiB"
    title = f"{row['config']}, {row['program']}: {row['rows']} samples over {row['topology']}"
    lines = [f"{title}, {row['note']}" if row["note"] else title]
    if "does_not_fit" in row:
        return "\n  ".join([*lines, row["does_not_fit"]])
    lines += [
        f"lowered in {row['lowered_in']:.0f} s, compiled in {row['compiled_in']:.0f} s; on each device:"
    ]
    parts = ", ".join(f"{name} {gib(size)}" for name, size in row["bytes"].items())
    lines += [f"memory: {parts}" + (f" of {row['hbm_gib']}" if "hbm_gib" in row else "")]
    lines += ["convolutions and matrix products as written, GFLOP: " + _joined(row["flops_by_dtype"], 1e9)]
    lines += ["the same as compiled, number: " + _joined(row["products"])]
    lines += [f"by XLA, loops once: {row['xla_flops'] / 1e9:.2f} GFLOP, {gib(row['xla_bytes'])} accessed"]
    lines += [f"to and from HBM {gib(row['hbm_bytes'])}; copies {row['copies']}, {gib(row['copy_bytes'])}"]
    lines += [f"converts between float32 and bfloat16: {row['converts']}"]
    for kind, traffic in row["collectives"].items():
        size, inside = gib(traffic["bytes"]), traffic["in_loops"]
        lines += [f"{kind}: {traffic['runs']}, {size}; {inside} of the instructions in loops"]
    if row["loops"]:
        trips = ("unknown" if count is None else str(count) for count in row["loops"])
        lines += [f"trip counts of loops: {', '.join(trips)}"]
    return "\n  ".join(lines + (_times(row) if "bound" in row else []))


def _times(row: dict[str, Any]) -> list[str]:
    least, days = row["bound"], f", {row['days']:.2f} days of training" if row["days"] else ""
    parts = ", ".join(f"{name} {1e3 * least[name]:.3f}" for name in ("compute", "memory", "links"))
    return [
        f"at least {1e3 * least['seconds']:.3f} ms ({parts}), MFU at most {row['mfu_bound']:.1%}",
        f"by the compiler's estimate {1e3 * row['compiler_seconds']:.3f} ms, MFU {row['mfu_compiler']:.1%}{days}",
    ]


def _joined(values: dict[str, float], unit: float = 1) -> str:
    return ", ".join(f"{name} {value / unit:.6g}" for name, value in values.items()) or "none"


def write_row(path: pathlib.Path, row: dict[str, Any]) -> None:
    """Puts a row into the table under `HEADER`, in place of one of the same config, program and topology."""
    lines = path.read_text().splitlines()
    begin = lines.index(HEADER) + 2
    end = next(n for n in range(begin, len(lines) + 1) if n == len(lines) or not lines[n].startswith("|"))
    new = "| " + " | ".join([row[name] for name in ("config", "program", "topology")] + _cells(row)) + " |"
    same = new.split("|")[1:4]
    kept = [line for line in lines[begin:end] if line.split("|")[1:4] != same]
    path.write_text("\n".join([*lines[:begin], *kept, new, *lines[end:]]) + "\n")


def _cells(row: dict[str, Any]) -> list[str]:
    if "does_not_fit" in row:
        return [str(row["rows"]), row["does_not_fit"], *[""] * (len(COLUMNS) - 5)]
    least = row["bound"]
    return [
        str(row["rows"]),
        f"{row['bytes']['total'] / GIB:.2f}",
        f"{sum(row['flops_by_dtype'].values()) / 1e12:.3g}",
        f"{1e3 * least['seconds']:.3g}",
        least["limit"],
        f"{1e3 * row['compiler_seconds']:.3g}",
        f"{row['mfu_compiler']:.1%}",
        f"{row['days']:.2g}" if row["days"] else "",
        f"{row['compiled_in']:.0f}",
    ]


@contextlib.contextmanager
def progress(what: str, every: float = 30.0) -> Iterator[Callable[[], float]]:
    """Says on stderr what is going on, and for how long; yields a clock, in seconds."""
    start, over = time.monotonic(), threading.Event()
    clock = lambda: time.monotonic() - start

    def tell() -> None:
        print(f"{what} ...", file=sys.stderr, flush=True)
        while not over.wait(every):
            print(f"{what} ... {clock():.0f} s", file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield clock
    finally:
        over.set()
        teller.join()


if __name__ == "__main__":
    main()
