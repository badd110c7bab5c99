"""Ends all processes soon after one fails or dies, with the same exit status and one error line.

Otherwise the other processes would wait in a collective for that one, and a failed one at its exit for them.
"""

import atexit
import contextlib
import json
import math
import os
import sys
import threading
import time
from typing import Any, NamedTuple, NoReturn

import jax

from lsgm_jax.distributed.lifelines import Lifelines
from lsgm_jax.distributed.place import Place
from lsgm_jax.errors import printable
from lsgm_jax.jax_internals import coordination_client

FAILED = "lsgm/failed"  # in JAX's key-value store: the error line of each process, and the first failure
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LOOKS_AT_EXIT = 0.1
SECONDS_TO_NOTICE = 3.0 * SECONDS_BETWEEN_LOOKS  # the end of another process, after what it causes here
SECONDS_TO_FAIL = 3.0  # in which an error common to all processes occurs in each
SECONDS_TO_END = 2.0 * SECONDS_TO_FAIL  # in which all processes see a failure
STATUS_OF_DEATH = 1  # of the processes that live after another one has died

_ends = threading.Lock()  # taken by the thread that ends this process, and never released


class Failure(NamedTuple):
    """The end of a process, as the others see it.

    Attributes:
        process: that has seen the failure.
        line: the error message.
        status: exit status of all processes.
        death: whether the process at fault is another one, which cannot say so itself.
    """

    process: int
    line: str
    status: int
    death: bool = False


def stop(place: Place, line: str, status: int) -> NoReturn:
    """Ends this process after an error, and all others with it.

    The first process prints an error that occurs in all; otherwise the process with the error prints it.

    Args:
        place: of this process.
        line: the error message.
        status: exit status of all processes.
    """
    _ends.acquire()
    client = coordination_client()
    _note(client, Failure(place.process, line, status))
    if place.process == 0:
        print(line, file=sys.stderr)
    elif line != _line_of_first(client):
        print(f"{line} (in {place.of(place.process)})", file=sys.stderr)
    _end(client, status)


def _note(client: Any, failure: Failure) -> None:
    """Says in JAX's key-value store that this process ends."""
    for key, value in ((str(failure.process), failure.line), ("any", json.dumps(failure))):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process has set it
            client.key_value_set(f"{FAILED}/{key}", value)


def _line_of_first(client: Any) -> str | None:
    try:
        return client.blocking_key_value_get(f"{FAILED}/0", math.ceil(1000 * SECONDS_TO_FAIL))
    except jax.errors.JaxRuntimeError:
        return None


def lost_line(which: str, sign: str) -> str:
    """Returns the line that names processes which do not answer, and how that shows."""
    return (
        f"{which} ended, or hangs ({sign}): see its output; the same command goes on from the last checkpoint"
    )


class Watch:
    """A thread that ends this process when another one has failed or died."""

    def __init__(self, place: Place, lifelines: Lifelines):
        self._place, self._lifelines = place, lifelines
        self._error = sys.stderr  # before it is silenced in all processes but the first
        self._joined, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def joined(self) -> None:
        """Notes that JAX's runtime has started; its key-value store says who failed."""
        self._joined.set()
        atexit.register(self._leave)  # registered after JAX's handler, so it runs before

    def _leave(self) -> None:
        self._over.set()
        self._thread.join()  # a thread inside C++ at exit aborts the process
        # An exception that ends this process may come from the death of another, whose lifeline ends a moment later.
        until = time.monotonic() + (SECONDS_TO_NOTICE if hasattr(sys, "last_value") else 0.0)
        while not self._check() and time.monotonic() < until:
            time.sleep(SECONDS_BETWEEN_LOOKS_AT_EXIT)

    def _look(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            if self._check():
                return

    def _check(self) -> bool:
        """Ends this process if another one has failed or died; returns whether there is nothing more to see."""
        self._lifelines.beat()
        silent = self._lifelines.silent()
        try:
            failed = _first_failure() if self._joined.is_set() else None
        except jax.errors.JaxRuntimeError:  # the coordinator is gone, and JAX ends this process
            return True
        if failed is not None:
            self._follow(failed)
            return True
        if silent is not None:
            self._report_death(*silent)
        return False

    def _follow(self, failure: Failure) -> None:
        """Ends after another process, unless the same error is about to occur here."""
        if failure.process == self._place.process:
            return
        if not failure.death and self._over.wait(SECONDS_TO_FAIL):
            return
        _ends.acquire()
        if failure.death:  # each process that lives says it
            print(printable(failure.line), file=self._error)
            _end(None, failure.status)
        if self._place.process == 0:
            print(f"{printable(failure.line)} (in {self._place.of(failure.process)})", file=self._error)
        _end(coordination_client(), failure.status)

    def _report_death(self, process: int, sign: str) -> NoReturn:
        """Says that a process is gone, to the user and to the other processes, and ends."""
        _ends.acquire()
        line = f"lsgm: error: {lost_line(self._place.of(process), sign)}"
        print(line, file=self._error)
        client = coordination_client() if self._joined.is_set() else None
        if client is not None:
            _note(client, Failure(self._place.process, line, STATUS_OF_DEATH, death=True))
        _end(None, STATUS_OF_DEATH)  # the coordinator keeps the note; a barrier would wait for the dead


def _first_failure() -> Failure | None:
    found = dict(coordination_client().key_value_dir_get(FAILED)).get(f"{FAILED}/any")
    return Failure(*json.loads(found)) if found else None


def _end(client: Any, status: int) -> NoReturn:
    """Exits without the exit handlers of Python and JAX, which would wait for processes that wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    if client is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.wait_at_barrier("lsgm/end", math.ceil(1000 * SECONDS_TO_END))
    os._exit(status)
