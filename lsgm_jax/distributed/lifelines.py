"""Connections that stay open while several processes run, and show within a second that one has ended.

JAX's runtime notices a death too, and then aborts all other processes with a page and signal 6. The lifelines are
earlier, so the command can say in a line which process is gone.
"""

import contextlib
import socket
import time

BEAT = b"."
_MOST_HEARD = 4096  # bytes at a time


class Lifelines:
    """The connections of the rendezvous: of process 0 to all others, of the others to process 0."""

    def __init__(self, connections: dict[int, socket.socket], patience: float):
        """Keeps the connections.

        Args:
            connections: by process.
            patience: seconds after which a silent process counts as hanging.
        """
        self._connections, self._patience = connections, patience
        self._heard = dict.fromkeys(connections, time.monotonic())
        self._looked = time.monotonic()
        for connection in connections.values():
            connection.setblocking(False)

    def beat(self) -> None:
        """Sends a sign of life to the processes at the other ends."""
        for connection in self._connections.values():
            with contextlib.suppress(
                OSError
            ):  # its end is noticed by `silent`, a full buffer by the other side
                connection.send(BEAT)

    def silent(self) -> tuple[int, str] | None:
        """Returns a process that has ended or hangs, and how that shows; None if all live."""
        now = time.monotonic()
        if now - self._looked > self._patience / 2.0:  # it was this process that stood still, not the others
            self._heard = dict.fromkeys(self._connections, now)
        self._looked = now
        for process, connection in self._connections.items():
            if (more := _receive(connection)) == b"":
                return process, "its connection closed"
            if more:
                self._heard[process] = now
            elif now - self._heard[process] > self._patience:
                return process, f"no sign of life for {self._patience:.0f} s"
        return None


def _receive(connection: socket.socket) -> bytes | None:
    """Returns what has arrived; nothing if the connection has ended, None if it is silent."""
    try:
        return connection.recv(_MOST_HEARD)
    except BlockingIOError:
        return None
    except OSError:
        return b""
