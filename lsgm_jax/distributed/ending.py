"""Ends all processes soon after one fails, with the same exit status and one error line.

Otherwise the other processes would wait in a collective for the failed one, and that one at its exit for them.
"""

import atexit
import contextlib
import json
import math
import os
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from lsgm_jax.distributed.rendezvous import Place
from lsgm_jax.jax_internals import coordination_client

FAILED = "lsgm/failed"  # in JAX's key-value store: the error line of each process, and the first failure
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_FAIL = 3.0  # in which an error common to all processes occurs in each
SECONDS_TO_END = 2.0 * SECONDS_TO_FAIL  # in which all processes see a failure
SECONDS_WITH_COORDINATOR = 1.0  # that process 0 outlives the others, which abort without its coordinator


def stop(place: Place, line: str, status: int) -> NoReturn:
    """Ends this process after an error, and all others with it.

    The first process prints an error that occurs in all; otherwise the process with the error prints it.

    Args:
        place: of this process.
        line: the error message.
        status: exit status of all processes.
    """
    client = coordination_client()
    failure = json.dumps([place.process, line, status])
    for key, value in ((str(place.process), line), ("any", failure)):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process has set it
            client.key_value_set(f"{FAILED}/{key}", value)
    if place.process == 0:
        print(line, file=sys.stderr)
    elif line != _line_of_first(client):
        print(f"{line} (in {place.of(place.process)})", file=sys.stderr)
    _end(place, status)


def _line_of_first(client: Any) -> str | None:
    try:
        return client.blocking_key_value_get(f"{FAILED}/0", math.ceil(1000 * SECONDS_TO_FAIL))
    except jax.errors.JaxRuntimeError:
        return None


def watch(place: Place) -> None:
    """Starts a thread that ends this process when another one has failed."""
    client = coordination_client()
    error, over = sys.stderr, threading.Event()

    def look() -> None:
        failed = None
        while failed is None and not over.wait(SECONDS_BETWEEN_LOOKS):
            try:
                failed = dict(client.key_value_dir_get(FAILED)).get(f"{FAILED}/any")
            except jax.errors.JaxRuntimeError:
                return  # the coordinator is gone, and JAX ends this process
        # The same error may be about to occur in this process.
        if failed is None or over.wait(SECONDS_TO_FAIL):
            return
        process, line, status = json.loads(failed)
        if process == place.process:
            return
        if place.process == 0:
            print(f"{line} (in {place.of(process)})", file=error)
        _end(place, status)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()

    def leave() -> None:
        over.set()
        thread.join()  # a thread inside C++ at exit aborts the process

    atexit.register(leave)  # registered after JAX's handler, so it runs before


def _end(place: Place, status: int) -> NoReturn:
    """Exits without the exit handlers of Python and JAX, which would wait for processes that wait for this one."""
    client = coordination_client()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.wait_at_barrier("lsgm/end", math.ceil(1000 * SECONDS_TO_END))
    if place.process == 0:
        time.sleep(SECONDS_WITH_COORDINATOR)
    os._exit(status)
