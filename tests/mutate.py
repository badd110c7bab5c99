"""Damaged copies of valid files, for tests that readers refuse them in one line or read them right.

`attempt` runs a reader on one of them and says what it did. `mutated` is a hypothesis strategy of damaged bytes.
"""

import dataclasses
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from lsgm_jax.errors import UserError

NEAR = 160  # bytes at either end where headers and directories are
NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
SECONDS, BYTES = 2.0, 300 * 2**20  # that one small file may take


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Draws a copy with one to three faults: flipped bytes, cuts, additions, moved parts, overwritten integers."""
    for _ in range(draw(st.integers(1, 3))):
        content = draw(st.sampled_from(FAULTS))(draw, content)
    return content


def _position(draw: st.DrawFn, content: bytes) -> int:
    """Draws a position, often near the ends."""
    size = len(content)
    near = st.integers(0, min(NEAR, size))
    return draw(st.one_of(near, near.map(lambda left: size - left), st.integers(0, size)))


def _flip(draw: st.DrawFn, content: bytes) -> bytes:
    at = _position(draw, content)
    changed = bytes(byte ^ draw(st.integers(1, 255)) for byte in content[at : at + draw(st.integers(1, 4))])
    return content[:at] + changed + content[at + len(changed) :]


def _truncate(draw: st.DrawFn, content: bytes) -> bytes:
    return content[: _position(draw, content)]


def _extend(draw: st.DrawFn, content: bytes) -> bytes:
    at = draw(st.sampled_from((0, len(content), _position(draw, content))))
    return (
        content[:at]
        + draw(st.binary(min_size=1, max_size=16)) * draw(st.sampled_from((1, 7, 1000)))
        + content[at:]
    )


def _splice(draw: st.DrawFn, content: bytes) -> bytes:
    """Replaces a part by another part of the same file, of another length perhaps."""
    start, stop = sorted((_position(draw, content), _position(draw, content)))
    at, length = _position(draw, content), draw(st.integers(0, 64))
    return content[:at] + content[start : min(stop, start + 4096)] + content[at + length :]


def _overwrite(draw: st.DrawFn, content: bytes) -> bytes:
    """Writes an integer that sizes and counts do not expect."""
    code, at = draw(st.sampled_from("BHIQ")), _position(draw, content)
    size = struct.calcsize(code)
    number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * size)
    return content[:at] + struct.pack(draw(st.sampled_from("<>")) + code, number) + content[at + size :]


FAULTS = (_flip, _truncate, _extend, _splice, _overwrite)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a reader did with a damaged file: a result, a line for the user, or something that is a fault."""

    result: Any = None
    line: str | None = None
    fault: str | None = None


def attempt(read: Callable[[], Any]) -> Outcome:
    """Reads once; an error that is no `UserError`, more than one line, much time or memory are faults."""
    tracemalloc.start()
    start = time.thread_time()
    try:
        outcome = Outcome(result=read())
    except UserError as error:
        outcome = Outcome(line=str(error))
    except Exception as error:
        outcome = Outcome(fault=f"{type(error).__name__}: {str(error)[:200]}")
    seconds, peak = time.thread_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if outcome.fault is None and outcome.line is not None and not outcome.line.isprintable():
        return Outcome(fault=f"not one printable line: {outcome.line[:200]!r}")
    if outcome.fault is None and (seconds > SECONDS or peak > BYTES):
        return Outcome(fault=f"{seconds:.1f} s and {peak / 2**20:.0f} MiB ({outcome.line or 'read'})")
    return outcome
