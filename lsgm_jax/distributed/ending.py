"""How several processes end when one has failed: all of them, soon, with one status and as few words as possible.

Without it the others would wait in a computation for the one that is gone, and that one at its exit for them.
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

FAILED = "lsgm/failed"  # folder of JAX's key-value store: lines by process, and the first failure of any
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_FAIL = 3.0  # in which an error of all has occurred in all
SECONDS_TO_END = 2.0 * SECONDS_TO_FAIL  # in which all have seen that one has failed
SECONDS_WITH_COORDINATOR = 1.0  # which the first process takes with it, and without which others abort


def stop(place: Place, line: str, status: int) -> NoReturn:
    """Ends this process after an error, and all others with it, each with that status.

    What happens in all processes is printed by the first, anything else by the process it happens in.
    """
    client = coordination_client()
    failure = json.dumps([place.process, line, status])
    for key, value in ((str(place.process), line), ("any", failure)):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first
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
    """Looks from now on, beside the work, for a process that has failed, and ends this one with it."""
    client = coordination_client()
    error, over = sys.stderr, threading.Event()

    def look() -> None:
        failed = None
        while failed is None and not over.wait(SECONDS_BETWEEN_LOOKS):
            try:
                failed = dict(client.key_value_dir_get(FAILED)).get(f"{FAILED}/any")
            except jax.errors.JaxRuntimeError:
                return  # the coordinator has gone, and JAX ends this process
        # This process may be about to say the same.
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
        thread.join()  # a thread that Python leaves inside C++ aborts the process

    atexit.register(leave)  # after JAX's, and so before it


def _end(place: Place, status: int) -> NoReturn:
    """Leaves without what Python and JAX do at exit, which would wait for processes that wait for this one."""
    client = coordination_client()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.wait_at_barrier("lsgm/end", math.ceil(1000 * SECONDS_TO_END))
    if place.process == 0:
        time.sleep(SECONDS_WITH_COORDINATOR)
    os._exit(status)
