"""What users can mend, one line each: the command prints the message and exits with status 2, or 1 for bad numbers."""

import difflib
import re
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
    """Returns the text in one line: every character that a terminal would act on is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """Returns type and first line of the message of any error: "ValueError: ..."."""
    return printable(f"{type(error).__name__}: {error}".strip().splitlines()[0][:160])


def printable(text: str) -> str:
    """Returns text from a file as one line, cut if long, with escapes for characters that a terminal may obey."""
    line = " ".join(text[: 2 * LONGEST_LINE].split())[:LONGEST_LINE]
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def reason(error: BaseException) -> str:
    """Returns the message of the operating system, if it can be found in an error of another library."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = re.search(r": ([^:]+?)(?: to file \d+)? \[os_error_code", str(error))
    before = error.__cause__ or error.__context__
    return found[1] if found else reason(before) if before else first_line(error)
