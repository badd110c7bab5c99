"""Who is there: processes call in at the first one before JAX's runtime starts.

That runtime waits for all processes as well, but where one does not come it aborts those that did, and names none.
What is asked here is also whether all mean the same cluster. The port is the coordinator's, which JAX takes over.
"""

import contextlib
import dataclasses
import os
import re
import socket
import time
from typing import NoReturn

from lsgm_jax.errors import ClusterError

HELLO = re.compile(rb"lsgm (\d+) (\d+)\n")  # a process and how many there are
SECONDS_TO_SPEAK = 5.0  # for what has connected
SECONDS_BETWEEN_CALLS = 0.2


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands among the others.

    Attributes:
        coordinator: HOST:PORT of the first process, where all others find it.
        processes: how many there are.
        process: number of this one, from 0.
        devices: numbers of its devices among those of its machine; None for all of them.
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
        """Host and port."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    def of(self, process: int) -> str:
        """How errors call a process."""
        return f"process {process} of {self.processes}"


def hold(place: Place, timeout: float) -> None:
    """Returns as soon as all processes are there.

    Args:
        timeout: seconds that the others are waited for.

    Raises:
        ClusterError: in all processes that are there, if others are not, or if two say that they are the same.
    """
    if place.process:
        _call_in(place, timeout)
    else:
        _answer_all(place, timeout)


def _answer_all(place: Place, timeout: float) -> None:
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
    """Fills `waiting` with the connections of all other processes."""
    deadline = time.monotonic() + timeout
    while len(waiting) < place.processes - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            connection, _ = server.accept()
        except TimeoutError:
            _name_missing(place, set(range(1, place.processes)) - waiting.keys(), timeout)
        hello = HELLO.fullmatch(_read_line(connection, SECONDS_TO_SPEAK))
        if hello is None:  # no process of ours: ports get looked at
            connection.close()
            continue
        process, processes = map(int, hello.groups())
        twice = process in waiting
        waiting[-1 if twice else process] = connection
        if processes != place.processes:
            raise ClusterError(
                f"process {process} was told of {processes} processes, process 0 of {place.processes}: "
                "give all the same number"
            )
        if twice:
            raise ClusterError(f"{place.of(process)} was started twice: give each a number of its own")


def _name_missing(place: Place, missing: set[int], timeout: float) -> NoReturn:
    raise ClusterError(absence(place, missing, place.coordinator, timeout))


def absence(place: Place, missing: set[int], where: str, timeout: float) -> str:
    """The line that says which processes have not come."""
    names = ", ".join(map(str, sorted(missing)))
    which = (
        f"processes {names} of {place.processes}"
        if len(missing) > 1
        else f"process {names} of {place.processes}"
    )
    return (
        f"{which} did not arrive at {where} within {timeout:g} s: see its output, or wait longer by --timeout"
    )


def _call_in(place: Place, timeout: float) -> None:
    with _connect(place, timeout) as connection:
        _send(connection, f"lsgm {place.process} {place.processes}\n")
        # The first process may have started last, and then waits as long for the others.
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
                    absence(place, {0}, place.coordinator, timeout),
                    getattr(error, "strerror", error),
                )
                raise ClusterError(f"{line} ({reason})") from error
        time.sleep(SECONDS_BETWEEN_CALLS)


def _send(connection: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):  # who is gone will be missed
        connection.sendall(line.encode())


def _read_line(connection: socket.socket, timeout: float) -> bytes:
    """A line of what is sent, or what there is of it when the connection ends, or the time."""
    connection.settimeout(timeout)
    try:
        with connection.makefile("rb") as file:
            return file.readline(1000)
    except OSError:
        return b""
