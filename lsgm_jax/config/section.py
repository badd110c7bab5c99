"""One section of a config -> the object that it describes."""

from collections.abc import Callable
from typing import Any

import jax

from lsgm_jax.config.registry import Config, schema, section_target
from lsgm_jax.errors import ConfigError


def build(section: str, config: Config, **given: Any) -> Any:
    """Makes the object that a section describes.

    Args:
        given: the arguments named in `GIVEN`.

    Raises:
        ConfigError: if the target refuses a value.
    """
    target = section_target(section, config)
    fields = {name: value for name, value in config[section].items() if name in schema(section, target)}
    try:
        return target(**fields, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.{section}: {error}") from error


def attempt(key: str, function: Callable[[], Any]) -> None:
    """Refuses what a function, of shapes alone, refuses."""
    try:
        jax.eval_shape(function)
    except ValueError as error:
        raise ConfigError(f"config.{key}: {error}") from error
