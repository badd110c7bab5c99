"""A request to stop, as schedulers make it before they take a machine away."""

import itertools
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StoppedError(Exception):
    """Training stopped because it was asked to; the message says what is saved."""


# JAX's runtime agrees on the number of a question, which has to grow from stage to stage.
_QUESTIONS = itertools.count(1)


class Termination:
    """Takes note of SIGTERM while it is open; with several processes, JAX's runtime does, for all of them."""

    def __init__(self):
        self._came = False
        self._before = None

    def __enter__(self) -> "Termination":
        # Python lets only the main thread take signals.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def due(self) -> bool:
        """Whether to save and stop now; the same in all processes, each of which has to ask after every call."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(_QUESTIONS))
        return self._came

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._came = True
