"""The port at which process 0 waits for the others: open to one address, to few bytes, and for a limited time.

One thread serves all connections and waits for none of them, so a visitor that is silent or slow delays nobody.
"""

import contextlib
import dataclasses
import errno
import os
import selectors
import socket
import time

from lsgm_jax.distributed import handshake
from lsgm_jax.distributed.handshake import LONGEST_LINE, Hello, Outcome
from lsgm_jax.distributed.place import MOST_NAMED, Place
from lsgm_jax.errors import ClusterError

SECONDS_TO_SPEAK = 5.0  # for a visitor to introduce itself
SECONDS_FOR_PORT = 20.0  # for the coordinator of a run that has just ended to leave the port
MOST_VISITORS = 128  # that have not introduced themselves; one more dismisses the oldest
SECONDS_BETWEEN_LOOKS = 0.2


@dataclasses.dataclass
class Visitor:
    """A connection, and what is known of it.

    Attributes:
        connection: does not block.
        until: time at which it is dismissed if it has not introduced itself.
        challenge: what process 0 greeted it with.
        heard: bytes that it has sent so far.
        hello: what it said of itself; None before that.
    """

    connection: socket.socket
    until: float
    challenge: str = dataclasses.field(default_factory=handshake.challenge)
    heard: bytes = b""
    hello: Hello | None = None


def listen(place: Place, deadline: float) -> list[socket.socket]:
    """Opens the port, at the coordinator's address alone.

    Raises:
        ClusterError: if the address is not one of this machine, or the port is in use.
    """
    until = min(deadline, time.monotonic() + SECONDS_FOR_PORT)
    while True:
        try:
            return _listen(*place.bind_address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise ClusterError(_no_port(place, error)) from error
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Listens at every address of a name: "localhost" has one of IPv4 and one of IPv6, which others may choose."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    opened, refusal = [], OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, address in dict.fromkeys((family, address[:2]) for family, _, _, _, address in found):
        try:
            opened.append(socket.create_server((str(address[0]), port), family=family))
        except OSError as error:
            refusal = error
            if error.errno == errno.EADDRINUSE:
                for listener in opened:
                    listener.close()
                raise
    if not opened:
        raise refusal
    return opened


def _no_port(place: Place, error: OSError) -> str:
    host, port = place.bind_address
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return (
            f"cannot listen at {host}, which is no address of this machine: give --coordinator the address of "
            "process 0, or JAX_COORDINATOR_BIND_ADDRESS=HOST:PORT one of its own behind that"
        )
    reason = os.strerror(error.errno or 0)
    return f"cannot listen on port {port} ({reason}): choose another coordinator"


class Port:
    """The visitors of process 0, and the processes among them.

    Attributes:
        arrived: the connection of each process that has arrived.
    """

    def __init__(self, place: Place, token: str, listeners: list[socket.socket]):
        self._place, self._token, self._listeners = place, token, listeners
        self._selector = selectors.DefaultSelector()
        self._visitors: list[Visitor] = []  # in the order in which they came
        self.arrived: dict[int, Visitor] = {}

    def __enter__(self) -> "Port":
        for listener in self._listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, listener)
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for listener in self._listeners:
            listener.close()
        for visitor in self._visitors:
            visitor.connection.close()

    def gather(self, deadline: float) -> Outcome:
        """Waits for all processes, until the deadline at the latest."""
        while missing := sorted(set(range(1, self._place.processes)) - self.arrived.keys()):
            remaining = deadline - time.monotonic()
            if remaining <= 0.0:
                return Outcome("missing", (len(missing), *missing[:MOST_NAMED]))
            for key, _ in self._selector.select(min(remaining, SECONDS_BETWEEN_LOOKS)):
                if isinstance(key.data, Visitor):
                    if (outcome := self._hear(key.data)) is not None:
                        return outcome
                else:
                    self._admit(key.data)
            self._dismiss_late()
        return Outcome("complete")

    def _admit(self, listener: socket.socket) -> None:
        if len(self._visitors) >= MOST_VISITORS:
            self._dismiss(self._visitors[0])
        try:
            connection, _ = listener.accept()
        except OSError:  # it is gone already, or this process has no more files
            return
        connection.setblocking(False)
        visitor = Visitor(connection, time.monotonic() + SECONDS_TO_SPEAK)
        self._visitors.append(visitor)
        self._selector.register(connection, selectors.EVENT_READ, visitor)
        with contextlib.suppress(OSError):  # a visitor that is gone is noticed when it is heard
            connection.send(handshake.greeting(visitor.challenge))

    def _hear(self, visitor: Visitor) -> Outcome | None:
        """Takes what has arrived from a visitor; returns an outcome if that ends the rendezvous."""
        heard = _receive(visitor.connection)
        if heard is None:
            return None
        if visitor.hello is not None:  # says no more unless it has ended, and may be started again
            return self._dismiss(visitor)
        visitor.heard += heard
        if not heard or len(visitor.heard) > LONGEST_LINE:
            return self._dismiss(visitor)
        return self._introduce(visitor) if b"\n" in visitor.heard else None

    def _introduce(self, visitor: Visitor) -> Outcome | None:
        try:
            said = handshake.read_hello(visitor.heard, visitor.challenge, self._token)
        except PermissionError:
            with contextlib.suppress(OSError):
                visitor.connection.send(handshake.REFUSED)
            return self._dismiss(visitor)
        if said is None:  # for example a port scan
            return self._dismiss(visitor)
        visitor.hello = said
        before = self.arrived.get(said.process)
        self._visitors.remove(visitor)
        self.arrived[-1 if before else said.process] = visitor
        if said.processes != self._place.processes:
            return Outcome("differs", (said.process, said.processes, self._place.processes))
        return Outcome("twice", (said.process,)) if before else None

    def _dismiss_late(self) -> None:
        now = time.monotonic()
        for visitor in [each for each in self._visitors if each.until < now]:
            self._dismiss(visitor)

    def _dismiss(self, visitor: Visitor) -> None:
        self._selector.unregister(visitor.connection)
        visitor.connection.close()
        if visitor.hello is None:
            self._visitors.remove(visitor)
        else:
            del self.arrived[visitor.hello.process]


def _receive(connection: socket.socket) -> bytes | None:
    """Returns what has arrived; nothing at the end of the connection, None before anything has arrived."""
    try:
        return connection.recv(LONGEST_LINE + 1)
    except BlockingIOError:
        return None
    except OSError:
        return b""
