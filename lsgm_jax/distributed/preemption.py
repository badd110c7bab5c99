"""SIGTERM, which schedulers send before they preempt a machine, and Ctrl-C, as requests to save and stop training."""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """Training stopped after a signal; the message says which step is saved.

    Attributes:
        number: of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


# JAX's runtime needs a counter that grows with every sync point, across stages.
_SYNC_POINTS = itertools.count(1)


class Termination:
    """Records SIGTERM and SIGINT in its context, instead of their default actions.

    With several processes JAX's runtime records SIGTERM, for all of them, and SIGINT keeps its default action.

    Attributes:
        number: of the signal that came.
    """

    def __init__(self):
        self.number = signal.SIGTERM
        self._came = False
        self._before = {}

    def __enter__(self) -> "Termination":
        # Python handles signals only in the main thread.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def due(self) -> bool:
        """Returns whether to save and stop now, the same in all processes; each has to call this after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(_SYNC_POINTS))
        return self._came

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._came, self.number = True, signal.Signals(number)


@contextlib.contextmanager
def ended_by_second_signal() -> Iterator[None]:
    """Ends this process at the second SIGINT or SIGTERM in this context, whatever it is waiting for.

    Python calls handlers of signals in the main thread, which may hang. The number of a signal is also written to a
    socket, which a thread reads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_count, args=(ours,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        thread.join(timeout=1.0)  # a forked process may hold the other end open
        ours.close()


def _count(numbers: socket.socket) -> None:
    """Reads the numbers of signals until the other end is closed, or the second one has come."""
    came = 0
    while number := numbers.recv(1):
        came += number[0] in SIGNALS
        if came == 2:
            name = signal.Signals(number[0]).name
            print(f"\nlsgm: ended by a second signal, {name}; what is not saved is lost", file=sys.stderr)
            sys.stderr.flush()
            os._exit(128 + number[0])
