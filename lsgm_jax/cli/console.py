"""Standard output and error of the command, on a terminal, in a log file, and where there is ASCII alone."""

import codecs
import contextlib
import io
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

SECONDS_BETWEEN_LINES = 15.0  # of a progress bar in a log file
_ERRORS = "lsgm.plain"  # name of the handler of characters that the console lacks
_PLAIN = {"±": "+-", "×": "x", "→": "->", "–": "-", "—": "-", "…": "...", "█": "#", "’": "'"}
_MOVES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of the cursor, above and below a progress bar


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Makes both streams safe to print to: any character anywhere, and no carriage returns outside of a terminal."""
    codecs.register_error(_ERRORS, _spell)
    error = sys.stderr
    for stream in (sys.stdout, error):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
    if error is None or error.isatty():
        yield
        return
    sys.stderr = lines = PlainLines(error)
    try:
        yield
    finally:
        lines.flush()
        sys.stderr = error


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Spells what an encoding lacks: the signs of the tables in ASCII, other characters by their numbers."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, c.encode("unicode_escape").decode()) for c in lacking), error.end


class PlainLines(io.TextIOBase):
    """A stream for log files, which has a progress bar as a line now and then instead of redrawing it.

    A progress bar writes a carriage return and its state, again and again, and a newline at the end. Everything else
    passes as it is.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self._line, self._redrawn = "", False
        self._next = 0.0  # time from which the state of a progress bar is due

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoding of the stream, by which progress bars choose their characters."""
        return self._stream.encoding or "ascii"

    def fileno(self) -> int:
        """Returns the number of the file."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Returns False: this is no terminal."""
        return False

    def writable(self) -> bool:
        """Returns True."""
        return True

    def write(self, text: str) -> int:
        """Writes lines; keeps the last one until it ends."""
        for part in re.split(r"([\r\n])", _MOVES.sub("", text)):
            if part == "\r":
                self._line, self._redrawn = "", True
            elif part == "\n":
                self._end_line()
            else:
                self._line += part
        return len(text)

    def _end_line(self) -> None:
        if self._line.strip() or not self._redrawn:
            self._stream.write(f"{self._line.rstrip() if self._redrawn else self._line}\n")
        self._line, self._redrawn = "", False

    def flush(self) -> None:
        """Writes a line that has not ended; of a progress bar, if it is due."""
        if not self._redrawn:
            self._stream.write(self._line)
            self._line = ""
        elif self._line.strip() and time.monotonic() >= self._next:
            self._next = time.monotonic() + SECONDS_BETWEEN_LINES
            self._stream.write(f"{self._line.rstrip()}\n")
            self._line = ""
        self._stream.flush()
