"""SIGTERM, which schedulers send before they preempt a machine, as a request to stop training."""

import itertools
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StoppedError(Exception):
    """Training stopped after SIGTERM; the message says which step is saved."""


# JAX's runtime needs a counter that grows with every sync point, across stages.
_SYNC_POINTS = itertools.count(1)


class Termination:
    """Records SIGTERM in its context, instead of the default action.

    With several processes JAX's runtime records it, for all of them.
    """

    def __init__(self):
        self._came = False
        self._before = None

    def __enter__(self) -> "Termination":
        # Python handles signals only in the main thread.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def due(self) -> bool:
        """Returns whether to save and stop now, the same in all processes; each has to call this after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(_SYNC_POINTS))
        return self._came

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._came = True
