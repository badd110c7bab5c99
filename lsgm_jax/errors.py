"""What users can mend, one line each: the command prints the message and exits with status 2, or 1 for bad numbers."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST_LINE = 1000


class UserError(Exception):
    """Something that the user can mend; the message names what is wrong, and what to do.

    Attributes:
        status: exit status of the command.
    """

    status = 2


class ConfigError(UserError):
    """A config that cannot be used; the message names the key, what is allowed and the nearest match."""


class DataError(UserError):
    """A data set that cannot be read; the message says what to do."""


class ConversionError(UserError, ValueError):
    """A state dict that does not fit the network; the message names the tensors."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written; the message names it."""


class TrainingError(UserError):
    """Training that cannot go on; the message says why, and what is saved."""


class LockedError(UserError):
    """A folder that another process is writing to, or that cannot be written; the message names both."""


class ClusterError(UserError):
    """Processes that do not come together; the message names the ones to blame."""


class NumericalError(UserError):
    """Results that are not finite, of which no figure is made; the message says which and how many.

    The request itself is in order, so the exit status is another.
    """

    status = 1


class OutOfStepsError(NumericalError):
    """Solves that ran out of steps, which the user can mend; the message says how many."""

    status = 2


class UsageError(UserError):
    """A command line that is off; the message says what it should be."""


def look_up(table: Mapping[str, Any], name: str, key: str) -> Any:
    """`table[name]`.

    Raises:
        ConfigError: if there is no such entry; lists the entries.
    """
    if name not in table:
        raise ConfigError(f"config.{key}={name!r} is none of {', '.join(table)}{did_you_mean(name, table)}")
    return table[name]


def did_you_mean(word: Any, options: Iterable[str]) -> str:
    """'; did you mean ...?' for a near miss, else nothing."""
    match = difflib.get_close_matches(str(word), list(options), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def printable(text: str) -> str:
    """Returns a text or a name with escapes for bytes that are no UTF-8 and for what a terminal would act on."""
    return unicodedata.normalize("NFC", "".join(c if c.isprintable() else _escaped(c) for c in text))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # Python's stand-in for a byte that is no UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def in_one_line(text: str) -> str:
    """Returns a message of another library, or a text from a file, as one printable line, cut if long."""
    return printable(" ".join(text[: 2 * LONGEST_LINE].split())[:LONGEST_LINE])


def first_line(error: BaseException) -> str:
    """Returns type and first line of the message of any error: "ValueError: ..."."""
    return printable(f"{type(error).__name__}: {error}".strip().splitlines()[0][:160])


def reason(error: BaseException) -> str:
    """Returns the message of the operating system, if it can be found in an error of another library."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = re.search(r": ([^:]+?)(?: to file \d+)? \[os_error_code", str(error))
    before = error.__cause__ or error.__context__
    return found[1] if found else reason(before) if before else first_line(error)
