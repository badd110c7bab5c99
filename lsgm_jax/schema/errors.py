"""Configs that cannot be used, and what to say of them."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class ConfigError(Exception):
    """A config that cannot be used; the message names the key, what is allowed and the nearest match."""


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
