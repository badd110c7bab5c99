"""Profiler traces of a few training steps, for TensorBoard's profiler and Perfetto."""

import pathlib
from typing import Any

import jax

WARMUP = 10  # steps before the trace: compilation and the first fast steps
TRACED = 10


class Trace:
    """Traces a few steps of a stage into a folder.

    Args:
        folder: gets the trace.
        begin: step at which the stage begins or resumes.
        wanted: False for no trace.
    """

    def __init__(self, folder: pathlib.Path, begin: int, *, wanted: bool):
        self._folder, self._wanted, self._first = folder, wanted, begin + WARMUP
        self._running = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def step(self, number: int, result: Any) -> None:
        """Starts or stops the trace; called after the steps up to `number` were dispatched, with their results."""
        if self._running and number >= self._first + TRACED:
            jax.block_until_ready(result)
            self._stop()
        elif self._wanted and number >= self._first:
            jax.block_until_ready(result)
            jax.profiler.start_trace(str(self._folder))
            self._running, self._wanted, self._first = True, False, number

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
