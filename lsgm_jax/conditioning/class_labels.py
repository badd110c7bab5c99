"""Classes by name or number, as `--label` gives them."""

import re
from collections.abc import Sequence

from lsgm_jax.errors import ConfigError, did_you_mean

MOST = 100  # names in a message


def find_class(label: str, names: Sequence[str], classes: int) -> int:
    """Returns the index of the class that `label` means: a name goes before an index.

    If all names are numbers, a number means the class of that name, also `2` for `02`, and never an index.

    Args:
        label: a name or an index.
        names: of the classes 0, 1, ...; empty if they have none.
        classes: number of classes of the model.

    Raises:
        ConfigError: if there is no such class, or several.
    """
    if label in names:
        return names.index(label)
    if _is_number(label):
        numbers = [_number(name) for name in names if _is_number(name)]
        indices = list(map(str, range(len(names))))
        if len(numbers) < len(names) or list(names) == indices:
            return _checked(label, classes)
        if numbers.count(_number(label)) == 1:
            return numbers.index(_number(label))
    known = (
        f"the classes are {', '.join(names[:MOST])}{', ...' * (len(names) > MOST)}{did_you_mean(label, names)}"
        if names
        else f"classes have no names; give a number from 0 to {classes - 1}"
    )
    raise ConfigError(f"--label={label}: {known}")


def described(index: int, names: Sequence[str]) -> str:
    """Returns a class for a message: its name and index."""
    return f"{names[index]!r} (index {index})" if index < len(names) else str(index)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]+", text) is not None


def _number(digits: str) -> str:
    """Returns a number without leading zeros: as text, for it may have thousands of digits."""
    return digits.lstrip("0") or "0"


def _checked(label: str, classes: int) -> int:
    digits = _number(label)
    if len(digits) > len(str(classes)) or int(digits) >= classes:
        raise ConfigError(f"--label={label}: there are the classes 0 to {classes - 1}")
    return int(digits)
