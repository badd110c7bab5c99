"""Rendezvous: all processes connect to the first one before JAX's runtime starts.

JAX's runtime waits for all processes too, but if one is missing it aborts the others without naming it. The rendezvous
also checks that all processes agree on their number. It uses the port of the coordinator, which JAX takes over.
"""

import contextlib
import dataclasses
import os
import re
import socket
import time
from typing import NoReturn

from lsgm_jax.errors import ClusterError

HELLO = re.compile(rb"lsgm (\d+) (\d+)\n")  # index of a process, number of processes
SECONDS_TO_SPEAK = 5.0  # for a connection to send its line
SECONDS_BETWEEN_CALLS = 0.2


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a process among all processes.

    Attributes:
        coordinator: HOST:PORT of process 0, reachable from all others.
        processes: number of processes.
        process: index of this process, from 0.
        devices: indices of its devices on its machine; None for all.
    """

    coordinator: str
    processes: int
    process: int
    devices: tuple[int, ...] | None = None

    def __post_init__(self):
        if not 0 <= self.process < self.processes:
            raise ClusterError(
                f"process {self.process} of {self.processes}: processes are 0 to {self.processes - 1}"
            )
        if not re.fullmatch(r"\S+:\d{1,5}", self.coordinator) or not 0 < self.address[1] < 2**16:
            raise ClusterError(f"coordinator {self.coordinator!r}: give HOST:PORT of process 0")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    def of(self, process: int) -> str:
        """Returns the name of a process in errors."""
        return f"process {process} of {self.processes}"


def wait_for_all(place: Place, timeout: float) -> None:
    """Waits until all processes have connected to process 0.

    Args:
        place: of this process.
        timeout: seconds to wait for the others.

    Raises:
        ClusterError: in all connected processes, if others are missing, two have the same index, or the numbers of
            processes differ.
    """
    if place.process:
        _wait_as_other(place, timeout)
    else:
        _wait_as_first(place, timeout)


def _wait_as_first(place: Place, timeout: float) -> None:
    waiting: dict[int, socket.socket] = {}
    answer = ""
    try:
        with _listen(place) as server:
            _collect(server, place, waiting, timeout)
    except ClusterError as error:
        answer = str(error)
        raise
    finally:
        for connection in waiting.values():
            with connection:
                _send(connection, f"{answer}\n")


def _listen(place: Place) -> socket.socket:
    port, both = place.address[1], socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ClusterError(f"cannot listen on port {port} ({reason}): choose another coordinator") from error


def _collect(server: socket.socket, place: Place, waiting: dict[int, socket.socket], timeout: float) -> None:
    """Fills `waiting` with the connections of all other processes, by index."""
    deadline = time.monotonic() + timeout
    while len(waiting) < place.processes - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            _name_missing(place, set(range(1, place.processes)) - waiting.keys(), timeout)
        hello = HELLO.fullmatch(_read_line(connection, SECONDS_TO_SPEAK))
        if hello is None:  # not a process of this run; for example a port scan
            connection.close()
            continue
        process, processes = map(int, hello.groups())
        twice = process in waiting
        waiting[-1 if twice else process] = connection
        if processes != place.processes:
            raise ClusterError(
                f"process {process} was started as one of {processes}, process 0 as one of {place.processes}: "
                "give all the same number"
            )
        if twice:
            raise ClusterError(f"{place.of(process)} was started twice: give each a number of its own")


def _name_missing(place: Place, missing: set[int], timeout: float) -> NoReturn:
    raise ClusterError(missing_message(place, missing, place.coordinator, timeout))


def missing_message(place: Place, missing: set[int], where: str, timeout: float) -> str:
    """Returns the error message that names the processes that did not arrive."""
    names = ", ".join(map(str, sorted(missing)))
    which = (
        f"processes {names} of {place.processes}"
        if len(missing) > 1
        else f"process {names} of {place.processes}"
    )
    return (
        f"{which} did not arrive at {where} within {timeout:g} s: see its output, or wait longer by --timeout"
    )


def _wait_as_other(place: Place, timeout: float) -> None:
    with _connect(place, timeout) as connection:
        _send(connection, f"lsgm {place.process} {place.processes}\n")
        # Process 0 may have started last, and then waits for the full timeout.
        answer = _read_line(connection, timeout + SECONDS_TO_SPEAK).decode(errors="replace")
    if answer != "\n":
        lost = f"{place.of(0)} ended before all had arrived at {place.coordinator}: see its output"
        raise ClusterError(answer.strip() or lost)


def _connect(place: Place, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection(place.address, timeout=SECONDS_TO_SPEAK)
        except OSError as error:
            if time.monotonic() > deadline:
                line, reason = (
                    missing_message(place, {0}, place.coordinator, timeout),
                    getattr(error, "strerror", error),
                )
                raise ClusterError(f"{line} ({reason})") from error
        time.sleep(SECONDS_BETWEEN_CALLS)


def _send(connection: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):  # a process that is gone is missing at the next barrier
        connection.sendall(line.encode())


def _read_line(connection: socket.socket, timeout: float) -> bytes:
    """Reads a line, or the part of it that arrives before the connection or the timeout ends."""
    connection.settimeout(timeout)
    try:
        with connection.makefile("rb") as file:
            return file.readline(1000)
    except OSError:
        return b""
