"""Runs programs as several processes on this machine, each with its own simulated CPU devices."""

import contextlib
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
# Runs before a program: `process` is the index of the process, `processes` their number.
JOIN = """
import sys
import jax
from lsgm_jax.distributed import launch
processes, process = int(sys.argv[2]), int(sys.argv[3])
launch.join(launch.Place(sys.argv[1], processes, process), timeout=60)
"""


@dataclasses.dataclass(frozen=True)
class Finished:
    """Result of a process; `seconds` is the time from the start of all processes to its end."""

    status: int
    out: str
    err: str
    seconds: float


def run_program(source, *, processes=2, devices=2, join=JOIN, timeout=120):
    """Runs Python code in each process, after `launch.join`."""
    arguments = [sys.executable, "-c", join + source]
    coordinator = f"localhost:{free_port()}"
    commands = [[*arguments, coordinator, str(processes), str(number)] for number in range(processes)]
    return run_commands(commands, devices=devices, timeout=timeout)


def run_lsgm(arguments, *, processes=2, devices=2, present=None, timeout=240):
    """Runs one `lsgm` command as several processes.

    Args:
        present: indices of the processes to start; None for all.
    """
    together = [f"--coordinator=localhost:{free_port()}", f"--processes={processes}"]
    commands = [
        [sys.executable, "-m", "lsgm_jax.cli", *arguments, *together, f"--process={number}"]
        for number in (range(processes) if present is None else present)
    ]
    return run_commands(commands, devices=devices, timeout=timeout)


def run_alone(*arguments, devices, timeout=240):
    """Runs `python -m` with these arguments in a single process with this number of devices."""
    (done,) = run_commands([[sys.executable, "-m", *map(str, arguments)]], devices=devices, timeout=timeout)
    assert done.status == 0, done.err
    return done


def run_commands(commands, *, devices, timeout):
    """Starts all commands; kills those that have not ended after `timeout` seconds."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    begin, ends = time.monotonic(), {}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = []
        for number, command in enumerate(commands):
            # Output goes to files, because a full pipe would block the process, and the others with it.
            out, err = (
                stack.enter_context((folder / f"{number}.{name}").open("w")) for name in ("out", "err")
            )
            started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err))
        while len(ends) < len(started) and time.monotonic() - begin < timeout:
            time.sleep(0.05)
            for number, process in enumerate(started):
                if process.poll() is not None:
                    ends.setdefault(number, time.monotonic() - begin)
        for process in started:
            process.kill()
            process.wait()
        return [
            Finished(
                process.returncode,
                (folder / f"{number}.out").read_text(),
                (folder / f"{number}.err").read_text(),
                ends.get(number, float("inf")),
            )
            for number, process in enumerate(started)
        ]


def free_port():
    """Returns a port that no process listens on."""
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]
