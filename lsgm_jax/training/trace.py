"""A trace of what the devices do in a few steps, for TensorBoard's profiler and Perfetto."""

import pathlib
from typing import Any

import jax

WARMUP = 10  # steps that compile and settle
TRACED = 10


class Trace:
    """Traces steps of a stage into a folder, if wanted.

    Args:
        begin: number of steps before the first.
    """

    def __init__(self, folder: pathlib.Path, begin: int, *, wanted: bool):
        self._folder, self._wanted, self._first = folder, wanted, begin + WARMUP
        self._running = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def step(self, number: int, result: Any) -> None:
        """Says that the steps up to `number` were sent to the devices, and what they give."""
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
