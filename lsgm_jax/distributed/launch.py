"""Joins several processes into one JAX run, with barriers and consistency checks.

JAX's coordination service does the work. Where it would abort a process with a C++ traceback, the functions here raise
an error of one line that names the process at fault (see docs/howto/cluster.md).
"""

import contextlib
import itertools
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import jax

from lsgm_jax.distributed import coordinator, ending, rendezvous
from lsgm_jax.distributed.lifelines import Lifelines
from lsgm_jax.distributed.place import Place, missing_message
from lsgm_jax.errors import ClusterError, printable
from lsgm_jax.files import is_first
from lsgm_jax.jax_internals import coordination_client, detect_cluster

__all__ = ["ClusterError", "Place", "agree", "barrier", "is_first", "join", "joined", "others_silent", "stop"]

TIMEOUT = 300.0  # default, in seconds
# Seconds without a sign of life until a process is considered dead: here, and later by JAX, which then aborts.
LEAST_PATIENCE, MOST_PATIENCE = 10.0, 100.0
SECONDS_TO_JAX = 30.0
SECONDS_TO_JOIN = 60.0  # minimum for the start of JAX's runtime, after the rendezvous
SECONDS_TO_ANSWER = 5.0  # for other processes, after an error

_joined: list["_Joined"] = []  # empty, or one entry after `join`
_numbers = itertools.count()  # of barriers, because JAX lets each be passed once


class _Joined(NamedTuple):
    place: Place
    timeout: float


def join(place: Place | None = None, timeout: float = TIMEOUT, *, notes_sigterm: bool = True) -> None:
    """Makes this process one of several; must be called before JAX initialises its devices.

    Args:
        place: this process among the others; None to detect it from SLURM, Open MPI, or the metadata of a TPU.
        timeout: seconds to wait for the other processes.
        notes_sigterm: makes SIGTERM to any process a request to all (`preemption.py`) that ends none by itself.

    Raises:
        ClusterError: if other processes do not arrive, or the place cannot be detected.
        RuntimeError: from JAX, if its devices are initialised already.
    """
    place = place or detect(timeout)
    connections = rendezvous.wait_for_all(place, timeout)
    patience = min(max(timeout, LEAST_PATIENCE), MOST_PATIENCE)
    heartbeat = math.ceil(patience + SECONDS_TO_JAX)
    watch = ending.Watch(place, Lifelines(connections, patience))
    if place.process == 0:
        coordinator.start(place, heartbeat)
    jax.config.update("jax_enable_preemption_service", notes_sigterm)
    jax.distributed.initialize(
        coordinator_address=place.coordinator,
        num_processes=place.processes,
        process_id=place.process,
        local_device_ids=None if place.devices is None else list(place.devices),
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(max(timeout, SECONDS_TO_JOIN)),
        heartbeat_timeout_seconds=heartbeat,
        coordinator_bind_address=coordinator.IDLE_ADDRESS,
    )
    _joined.append(_Joined(place, timeout))
    watch.joined()


def detect(timeout: float) -> Place:
    """Detects the place of this process by JAX's cluster detection.

    Args:
        timeout: seconds for the detection.

    Raises:
        ClusterError: if there is neither SLURM nor Open MPI nor the metadata of a TPU.
    """
    coordinator, processes, process, devices = detect_cluster(math.ceil(timeout))
    if coordinator is None or processes is None or process is None:
        raise ClusterError(
            "--distributed found neither SLURM nor Open MPI nor a TPU's metadata: "
            "give --coordinator=HOST:PORT --processes=N --process=I"
        )
    chosen = "JAX_LOCAL_DEVICE_IDS" in os.environ  # JAX reads it
    return Place(coordinator, processes, process, None if chosen or devices is None else tuple(devices))


def joined() -> bool:
    """Returns whether `join` has made this process one of several."""
    return bool(_joined)


def barrier(where: str, timeout: float | None = None) -> None:
    """Waits until all processes have arrived. A single process does not wait.

    Args:
        where: name of the barrier, for the error.
        timeout: seconds to wait for the others; None for the timeout of `join`.

    Raises:
        ClusterError: if some do not arrive; it names them.
    """
    if joined():
        _meet(where, "", timeout)


def agree(what: str, value: str) -> None:
    """Waits until all processes have arrived with the same value.

    Args:
        what: a noun for the value, for the error.
        value: has to be the same in all processes.

    Raises:
        ClusterError: if some do not arrive, or have another value than the first process; it names them.
    """
    if not joined():
        return
    place, values = _joined[-1].place, _meet(f"comparison of {what}s", value)
    for process, other in enumerate(values):
        if other != values[0]:
            raise ClusterError(
                f"{place.of(process)} has another {what} than process 0: "
                "give all the same, and a file system that they share"
            )


def _meet(where: str, value: str, timeout: float | None = None) -> list[str]:
    """Waits for all processes and returns their values, in the order of the processes."""
    place, patience = _joined[-1]
    timeout, folder = timeout or patience, f"lsgm/{next(_numbers)}"
    client = coordination_client()
    client.key_value_set(f"{folder}/{place.process}", value)
    try:
        client.wait_at_barrier(folder, math.ceil(1000 * timeout))
    except jax.errors.JaxRuntimeError as error:
        missing = set(range(place.processes)) - _values(client, folder).keys()
        if not missing:
            raise
        raise ClusterError(missing_message(place, missing, f"the {where}", timeout)) from error
    return [value for _, value in sorted(_values(client, folder).items())]


def _values(client: Any, folder: str) -> dict[int, str]:
    return {int(key.rpartition("/")[2]): value for key, value in client.key_value_dir_get(folder)}


@contextlib.contextmanager
def others_silent() -> Iterator[None]:
    """Discards the output of all processes but the first, progress bars included; exceptions still propagate."""
    if is_first():
        yield
        return
    sys.stdout.flush()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), open(os.dup(1)) as before:
        os.dup2(nowhere.fileno(), 1)  # also the output of C++ libraries
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(before.fileno(), 1)


def lost(error: Exception) -> str | None:
    """Returns a line that names the processes that do not answer; None if all do.

    Args:
        error: an error of a collective computation, which a lost process may have caused.
    """
    if not isinstance(error, jax.errors.JaxRuntimeError):
        # JAX may also wrap the error of a collective: the watch ends this process.
        time.sleep(ending.SECONDS_TO_NOTICE)
        return None
    try:
        barrier("aftermath", SECONDS_TO_ANSWER)
    except ClusterError as absence:
        names = str(absence).partition(" did not")[0]
        sign = (str(error).splitlines() or [""])[0][:160]
        return ending.lost_line(names, printable(sign))
    return None


def stop(line: str, status: int) -> NoReturn:
    """Ends this process after an error, and all others with it; see `ending.stop`."""
    ending.stop(_joined[-1].place, line, status)
