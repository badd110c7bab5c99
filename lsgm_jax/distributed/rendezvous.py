"""Rendezvous: all processes connect to the first one before JAX's runtime starts.

JAX's runtime waits for all processes too, but if one is missing it aborts the others without naming it; it lets anyone
take part. The rendezvous checks a token and that all processes agree on their number. It uses the port of the
coordinator, which JAX takes over (see docs/decisions/0023-rendezvous-before-jax.md).
"""

import contextlib
import ipaddress
import socket
import sys
import time

from lsgm_jax.distributed import handshake
from lsgm_jax.distributed.handshake import LONGEST_LINE, TOKEN, Hello, Outcome
from lsgm_jax.distributed.place import Place, missing_first, missing_message
from lsgm_jax.distributed.port import SECONDS_TO_SPEAK, Port, listen
from lsgm_jax.errors import ClusterError

__all__ = ["Place", "missing_message", "wait_for_all"]

SECONDS_BETWEEN_CALLS = 0.2


def wait_for_all(place: Place, timeout: float, token: str | None = None) -> dict[int, socket.socket]:
    """Waits until all processes have connected to process 0.

    Args:
        place: of this process.
        timeout: seconds to wait for the others.
        token: a secret that all processes share, "" for none; None for that of the environment.

    Returns:
        The connections, by process: of process 0 to all others, of the others to process 0.

    Raises:
        ClusterError: in all connected processes, if others are missing, two have the same index, the numbers of
            processes differ, or this one has another token than process 0.
    """
    token = handshake.cluster_token() if token is None else token
    if place.process:
        return {0: _wait_as_other(place, timeout, token)}
    return _wait_as_first(place, timeout, token)


def _wait_as_first(place: Place, timeout: float, token: str) -> dict[int, socket.socket]:
    deadline = time.monotonic() + timeout
    _warn_without_token(place, token)
    with Port(place, token, listen(place, deadline)) as port:
        outcome = port.gather(deadline)
    connections = {number: visitor.connection for number, visitor in port.arrived.items()}
    for visitor in port.arrived.values():
        assert visitor.hello is not None
        with contextlib.suppress(OSError):  # a process that is gone is noticed by what follows
            line = handshake.outcome_line(outcome, visitor.hello.challenge, visitor.challenge, token)
            visitor.connection.send(line)
    if outcome.word != "complete":
        for connection in connections.values():
            connection.close()
        raise ClusterError(_complaint(place, outcome, timeout))
    return connections


def _warn_without_token(place: Place, token: str) -> None:
    if place.processes > 1 and not token and not _is_local(place.bind_address[0]):
        print(
            f"lsgm: warning: without {TOKEN} whoever reaches {place.bind} can take the place of a process",
            file=sys.stderr,
        )


def _is_local(host: str) -> bool:
    """Whether a host is this machine by its name, so that no other machine reaches the port."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _complaint(place: Place, outcome: Outcome, timeout: float) -> str:
    match outcome:
        case Outcome("missing", (count, *first)):
            return missing_first(place, count, first, place.coordinator, timeout)
        case Outcome("twice", (process,)):
            return f"{place.of(process)} was started twice: give each a number of its own"
        case Outcome(_, (process, processes, those_of_first)):
            return (
                f"process {process} was started as one of {processes}, process 0 as one of {those_of_first}: "
                "give all the same number"
            )
    raise AssertionError(outcome)


def _wait_as_other(place: Place, timeout: float, token: str) -> socket.socket:
    connection, theirs = _enter(place, timeout)
    mine = handshake.challenge()
    try:
        connection.sendall(handshake.hello(Hello(place.process, place.processes, mine), theirs, token))
        # Process 0 may have started last, and then waits for the full timeout.
        line = _read_line(connection, time.monotonic() + timeout + SECONDS_TO_SPEAK)
    except OSError:
        line = b""
    outcome = handshake.read_outcome(line, mine, theirs, token)
    if outcome == Outcome("complete"):
        return connection
    connection.close()
    if outcome is not None:
        raise ClusterError(_complaint(place, outcome, timeout))
    if line:
        raise ClusterError(
            f"{place.of(0)} at {place.coordinator} has another {TOKEN}, or is none of this run: "
            "give all processes the same"
        )
    raise ClusterError(f"{place.of(0)} ended before all had arrived at {place.coordinator}: see its output")


def _enter(place: Place, timeout: float) -> tuple[socket.socket, str]:
    """Connects to process 0, as often as needed; returns the connection and the challenge of the greeting."""
    deadline = time.monotonic() + timeout
    while True:
        reason: object = "what listens there is not lsgm"
        try:
            connection = socket.create_connection(place.address, timeout=SECONDS_TO_SPEAK)
            line = _read_line(connection, min(deadline, time.monotonic() + SECONDS_TO_SPEAK))
            if (theirs := handshake.read_greeting(line)) is not None:
                return connection, theirs
            connection.close()
        except OSError as error:
            reason = getattr(error, "strerror", error)
        if time.monotonic() > deadline:
            line = missing_message(place, {0}, place.coordinator, timeout)
            raise ClusterError(f"{line} ({reason})")
        time.sleep(SECONDS_BETWEEN_CALLS)


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    """Reads a line of limited length; nothing if it does not end before the connection or at the deadline."""
    heard = b""
    while b"\n" not in heard and len(heard) < LONGEST_LINE:
        remaining = deadline - time.monotonic()
        if remaining <= 0.0:
            return b""
        connection.settimeout(remaining)
        try:
            more = connection.recv(LONGEST_LINE - len(heard))
        except OSError:
            return b""
        if not more:
            return b""
        heard += more
    line, end, _ = heard.partition(b"\n")
    return line + end
