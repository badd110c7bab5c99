"""TensorBoard's event file of a stage."""

import os
import pathlib
import time
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from lsgm_jax.files import naming


class Events:
    """Writes scalars and images to an event file, at once.

    The writer of tensorboardX has a queue and a thread; training would wait for ever once that thread met a full disk.

    Args:
        folder: gets the file.
        resumed_step: step of the checkpoint that training resumes from; TensorBoard forgets what other files have of
            later steps. 0 if there is none.

    Raises:
        OSError: names the file, if it cannot be written.
    """

    def __init__(self, folder: pathlib.Path, resumed_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        with naming(folder):
            # The name has seconds alone; a process that resumes at once has another number.
            self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{os.getpid()}")
        self.path = pathlib.Path(self._writer._file_name)
        if resumed_step:
            self._write(resumed_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, step: int, name: str, value: float) -> None:
        """Writes a scalar."""
        self._write(step, summary=summary.scalar(name, value))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes an image, [h, w, c] uint8."""
        self._write(step, summary=summary.image(name, pixels, dataformats="HWC"))

    def flush(self) -> None:
        """Hands everything to the file system."""
        with naming(self.path):
            self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        with naming(self.path):
            self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        with naming(self.path):
            self._writer.write_event(Event(wall_time=time.time(), step=step, **what))
