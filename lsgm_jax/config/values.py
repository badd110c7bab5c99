"""Values of a config: the text of an override as a value of its field, and the check of every value that is given.

The annotation of a field says what it takes. What the check does not know (an annotation of someone else's class) it
accepts; the object that is built from the section judges it.
"""

import ast
import inspect
import numbers
import types
import typing
from typing import Any

from lsgm_jax.errors import ConfigError, printable

MOST_SEED = 2**32 - 1  # JAX's keys take 32 bits of it
# JAX computes with 32 bits.
MOST_INT = 2**31 - 1
MOST_FLOAT = 3.4e38
_TRUTHS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_EXAMPLES = {
    int: f"int, a whole number of at most {MOST_INT}",
    float: "float, a finite number such as 0.5",
    bool: "bool, True or False",
    str: "str, a text",
}
_LONGEST = 60  # characters of a value in a message


class _RefusedError(Exception):
    """A value that does not fit an annotation."""


def parsed(key: str, text: str, field: inspect.Parameter) -> Any:
    """Returns the value that an override gives a field.

    Args:
        key: of the config, as "section.field".
        text: what stands behind "=".
        field: with its annotation.

    Raises:
        ConfigError: for a value that the field does not take.
    """
    kinds = _kinds(field)
    if str in kinds or any(typing.get_origin(kind) is typing.Literal for kind in kinds):
        value: Any = None if text == "None" and type(None) in kinds else text
    elif bool in kinds and text.lower() in _TRUTHS:
        value = _TRUTHS[text.lower()]
    else:
        value = literal(text)
    return checked(key, value, field, text)


def checked(key: str, value: Any, field: inspect.Parameter, text: str | None = None) -> Any:
    """Returns a value of a config in the type of its field: an int as a float, a list as a tuple.

    Args:
        key: of the config, as "section.field".
        value: from a file or an override.
        field: with its annotation.
        text: of an override, for the message.

    Raises:
        ConfigError: for a value that the field does not take.
    """
    if value is field.default or (type(value) is type(field.default) and value == field.default):
        return value  # a default may be infinite
    for kind in _kinds(field):
        try:
            return _fit(value, kind)
        except _RefusedError:
            continue
    shown = printable(repr(value) if text is None else text)
    shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
    names = [_name(kind) for kind in _kinds(field) if not _is_array(kind)]
    raise ConfigError(f"config.{key}={shown}: give {' or '.join(names)}")


def checked_seed(value: Any) -> int:
    """Returns the seed of a config.

    Raises:
        ConfigError: if it is none.
    """
    if type(value) is not int or not 0 <= value <= MOST_SEED:
        raise ConfigError(f"config.seed={printable(repr(value))[:_LONGEST]}: give int from 0 to {MOST_SEED}")
    return value


def literal(text: str) -> Any:
    """Returns the value of a Python literal; the text itself if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _kinds(field: inspect.Parameter) -> tuple[Any, ...]:
    """Returns the alternatives of an annotation; without one, the type of the default."""
    kind = field.annotation
    if kind is inspect.Parameter.empty:
        known = isinstance(field.default, int | float | str | tuple)
        return (type(field.default),) if known else (Any,)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _fit(value: Any, kind: Any) -> Any:
    """Returns the value as one of a kind."""
    if kind is tuple or typing.get_origin(kind) is tuple:
        return _fit_tuple(value, typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return _only_if(value in typing.get_args(kind), value)
    if kind is type(None):
        return _only_if(value is None, value)
    if kind is bool or kind is str:
        return _only_if(isinstance(value, kind), value)
    if kind in (int, float):
        return _fit_number(value, kind)
    return _only_if(not _is_array(kind), value)


def _fit_number(value: Any, kind: type) -> int | float:
    allowed, most = (numbers.Integral, MOST_INT) if kind is int else (numbers.Real, MOST_FLOAT)
    number: Any = _only_if(isinstance(value, allowed) and not isinstance(value, bool), value)
    return kind(_only_if(-most <= number <= most, number))  # which is false for NaN


def _fit_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    elements = tuple(_only_if(isinstance(value, tuple | list), value))
    if not kinds:
        return elements
    if kinds[-1] is Ellipsis:
        return tuple(_fit(element, kinds[0]) for element in elements)
    _only_if(len(elements) == len(kinds), value)
    return tuple(_fit(element, kind) for element, kind in zip(elements, kinds, strict=True))


def _is_array(kind: Any) -> bool:
    """Whether an alternative is for computations alone: a config holds numbers."""
    return getattr(kind, "__module__", "").startswith(("jaxtyping", "jax", "numpy"))


def _only_if(fits: bool, value: Any) -> Any:
    if not fits:
        raise _RefusedError
    return value


def _name(kind: Any) -> str:
    """Returns the name of a kind, in messages."""
    if kind is type(None):
        return "None"
    if kind is tuple or typing.get_origin(kind) is tuple:
        elements = [each for each in typing.get_args(kind) if each is not Ellipsis]
        of = getattr(elements[0], "__name__", "values") if elements else "values"
        return (
            f"a tuple of {of}, such as {'(0.5,)' if of == 'float' else '(32,)' if of == 'int' else '(...,)'}"
        )
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    return _EXAMPLES.get(kind, str(kind))
