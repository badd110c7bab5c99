"""Workloads in processes of their own that take turns, so that neither library's threads disturb the other's.

A worker prints a line of JSON about its workload, then, for every number of steps that it reads, a line about them.
This module needs the standard library alone: the workers may have different environments.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

Step = Callable[[], None]  # returns when its work is done


class Turn(NamedTuple):
    """Some steps of a worker.

    Attributes:
        cpu, wall: seconds per step.
        peak_mib: of the process so far.
    """

    cpu: float
    wall: float
    peak_mib: float


class Worker:
    """A process that runs steps on demand.

    Raises:
        RuntimeError: if the process ends before it answers; its messages are on stderr.
    """

    def __init__(self, command: list[str], task: dict[str, Any], threads: int):
        # OpenMP's threads otherwise spin while they wait, which a busy machine turns into much CPU time.
        settings = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
        )
        self._name = command[-1]
        self._send(task | {"threads": threads})
        self.about: dict[str, Any] = self._receive()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def turn(self, steps: int) -> Turn:
        """Runs so many steps."""
        self._send(steps)
        return Turn(**self._receive())

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            hint = "; a machine without enough memory kills by signal 9" if code == -signal.SIGKILL else ""
            raise RuntimeError(f"{self._name} ended with exit code {code}{hint}")
        return json.loads(line)


def serve(prepare: Callable[[dict[str, Any]], tuple[dict[str, Any], Step]]) -> None:
    """Is the worker: answers on stdout until stdin ends.

    Args:
        prepare: builds what there is to tell about a task, and its step.
    """
    task = json.loads(sys.stdin.readline())
    cores = sorted(os.sched_getaffinity(0))[: task["threads"]]
    os.sched_setaffinity(0, cores)
    about, step = prepare(task)
    step()  # the first one compiles or allocates
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        print(json.dumps(_timed(step, int(line))._asdict()), flush=True)


def cpu_seconds() -> float:
    """CPU time of this process with all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _timed(step: Step, steps: int) -> Turn:
    cpu, wall = cpu_seconds(), time.monotonic()
    for _ in range(steps):
        step()
    cpu, wall = (cpu_seconds() - cpu) / steps, (time.monotonic() - wall) / steps
    return Turn(cpu, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
