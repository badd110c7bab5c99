"""Several processes as one: they join, wait for each other, and agree.

JAX's coordination service does the work. Where it would abort a process with a page of C++, there is one line instead
that names the process to blame (docs/howto/cluster.md has what happens when).
"""

import contextlib
import itertools
import math
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import jax

from lsgm_jax.distributed import ending, rendezvous
from lsgm_jax.distributed.rendezvous import Place
from lsgm_jax.errors import ClusterError
from lsgm_jax.files import is_first
from lsgm_jax.jax_internals import coordination_client, detect_cluster

__all__ = ["ClusterError", "Place", "agree", "barrier", "is_first", "join", "joined", "others_silent", "stop"]

TIMEOUT = 300.0  # seconds, unless someone says otherwise
LEAST_HEARTBEAT, MOST_HEARTBEAT = 10.0, 100.0  # seconds without a sign of life: then JAX gives a process up
SECONDS_TO_JOIN = 60.0  # at least, for JAX's runtime, when all are there
SECONDS_TO_ANSWER = 3.0  # after an error

_joined: list["_Joined"] = []  # nothing, or where this process has joined
_numbers = itertools.count()  # a barrier is passed once


class _Joined(NamedTuple):
    place: Place
    timeout: float


def join(place: Place | None = None, timeout: float = TIMEOUT, *, notes_sigterm: bool = True) -> None:
    """Makes this process one of several; comes before anything that asks JAX for a device.

    Args:
        place: where it stands; None to ask SLURM, Open MPI, or a TPU's metadata.
        timeout: seconds that others are waited for.
        notes_sigterm: whether SIGTERM to any of them is noted for all (`preemption.py`) and ends none by itself.

    Raises:
        ClusterError: if they do not come, or nobody says where this process stands.
        RuntimeError: from JAX, if it comes too late.
    """
    place = place or detect(timeout)
    rendezvous.hold(place, timeout)
    heartbeat = min(max(timeout, LEAST_HEARTBEAT), MOST_HEARTBEAT)
    jax.config.update("jax_enable_preemption_service", notes_sigterm)
    jax.distributed.initialize(
        coordinator_address=place.coordinator,
        num_processes=place.processes,
        process_id=place.process,
        local_device_ids=None if place.devices is None else list(place.devices),
        cluster_detection_method="deactivate",
        initialization_timeout=math.ceil(max(timeout, SECONDS_TO_JOIN)),
        heartbeat_timeout_seconds=math.ceil(heartbeat),
    )
    _joined.append(_Joined(place, timeout))
    ending.watch(place)


def detect(timeout: float) -> Place:
    """Where JAX's own detection says that this process stands.

    Raises:
        ClusterError: if it finds neither SLURM nor Open MPI nor the metadata of a TPU.
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
    """Whether `join` has made this process one of several."""
    return bool(_joined)


def barrier(where: str, timeout: float | None = None) -> None:
    """Waits until all processes are there. Without others it is passed at once.

    Args:
        where: what all of them call it, for the error.
        timeout: seconds that the others are waited for; those of `join` if left out.

    Raises:
        ClusterError: if some do not come; it names them.
    """
    if joined():
        _meet(where, "", timeout)


def agree(what: str, value: str) -> None:
    """A barrier that is passed with one and the same value only.

    Args:
        what: a noun for the value, for the error.
        value: the same in all processes.

    Raises:
        ClusterError: if some do not come, or bring another value than the first process; it names them.
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
    """The values of all processes, in their order."""
    place, patience = _joined[-1]
    timeout, folder = timeout or patience, f"lsgm/{next(_numbers)}"
    client = coordination_client()
    client.key_value_set(f"{folder}/{place.process}", value)
    try:
        client.wait_at_barrier(folder, math.ceil(1000 * timeout))
    except jax.errors.JaxRuntimeError as error:
        missing = set(range(place.processes)) - _brought(client, folder).keys()
        if not missing:
            raise
        raise ClusterError(rendezvous.absence(place, missing, f"the {where}", timeout)) from error
    return [value for _, value in sorted(_brought(client, folder).items())]


def _brought(client: Any, folder: str) -> dict[int, str]:
    return {int(key.rpartition("/")[2]): value for key, value in client.key_value_dir_get(folder)}


@contextlib.contextmanager
def others_silent() -> Iterator[None]:
    """What processes but the first print, bars included, goes nowhere; exceptions are for the caller."""
    if is_first():
        yield
        return
    sys.stdout.flush()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), open(os.dup(1)) as before:
        os.dup2(nowhere.fileno(), 1)  # libraries in C++ speak as well
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(before.fileno(), 1)


def lost(error: Exception) -> str | None:
    """The line that names who does not answer, if that may be the cause of an error in computing together."""
    try:
        barrier("aftermath", SECONDS_TO_ANSWER)
    except ClusterError as absence:
        names = str(absence).partition(" did not")[0]
        reason = (str(error).splitlines() or [""])[0][:160]
        return f"{names} ended, or hangs ({reason}): see its output; the same command goes on from the last checkpoint"
    return None


def stop(line: str, status: int) -> NoReturn:
    """Ends this process after an error, and all others with it; see `ending.stop`."""
    ending.stop(_joined[-1].place, line, status)
