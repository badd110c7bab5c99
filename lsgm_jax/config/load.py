"""Config file -> complete config: reads it with its overrides, fills in defaults and checks every key."""

import inspect
import math
import os
import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lsgm_jax.bounded import shown
from lsgm_jax.config.models import sections
from lsgm_jax.config.registry import Config, Section, fields
from lsgm_jax.config.renamed import current, renamed_to
from lsgm_jax.config.values import checked, checked_seed, literal, parsed
from lsgm_jax.errors import ConfigError, did_you_mean, first_line
from lsgm_jax.sealed import DamagedError, read_json, write_json

# Fields of a config that are no sections, and their defaults.
PLAIN = {"model": "lsgm", "seed": 0}
# Infinite numbers in config.json: JSON itself has none.
NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf}
# The sections that may differ between training and sampling or evaluation.
SAMPLING_SECTIONS = ("solver", "steps", "sampling", "divergence", "eval")


def load_config(path: str, overrides: list[str]) -> Config:
    """Returns the config of `path` ("file.py" or "file.py:arg") with `--config.a.b=value` overrides.

    A changed `name` resets its section to the new target's defaults; the other overrides refine those.

    Raises:
        ConfigError: with one line that names the key or file, what is allowed and the nearest match.
    """
    tree = _run_config_file(os.path.expanduser(path))
    complete(tree)
    return _overridden(tree, overrides)


def override(config: Config, overrides: list[str]) -> Config:
    """Returns a complete config with `--config.a.b=value` overrides of sampling and evaluation.

    Raises:
        ConfigError: as `load_config`, and for an override of anything else.
    """
    for key, _ in map(_split_override, overrides):
        section = key.partition(".")[0]
        if section not in SAMPLING_SECTIONS:
            allowed = ", ".join(SAMPLING_SECTIONS)
            raise ConfigError(f"config.{key} belongs to what was trained: only {allowed} can be changed now")
    return _overridden(config.to_dict(), overrides)


def _overridden(tree: dict[str, Any], overrides: list[str]) -> Config:
    changes = [_split_override(override) for override in overrides]
    tree |= {key: value for key, value in changes if key == "model"}
    known = _sections_of(tree)
    for key, value in changes:
        section, _, field = key.partition(".")
        _check_section(section, known)
        if field == "name" and _is_named(section, known) and value != tree.get(section, {}).get("name"):
            tree[section] = {"name": value}
    for key, value in changes:
        section, _, field = key.partition(".")
        if key == "seed":
            tree["seed"] = literal(value)
        elif section not in PLAIN and not (field == "name" and _is_named(section, known)):
            allowed = _fields(section, tree)
            if field not in allowed:
                names = ["name"] if _is_named(section, known) else []
                raise ConfigError(_no_such_key(section, field, sorted([*allowed, *names])))
            tree[section] = tree.get(section, {}) | {field: parsed(key, value, allowed[field])}
    return complete(tree)


def _is_named(section: str, known: dict[str, Section]) -> bool:
    """Whether the section has a name that chooses what it describes."""
    return section in known and isinstance(known[section].targets, dict)


def _named(section: str, tree: dict[str, Any]) -> dict[str, Any]:
    """What `tree` says of a section, its name included."""
    default = _sections_of(tree)[section].default
    return ({} if default is None else {"name": default}) | tree.get(section, {})


def _fields(section: str, tree: dict[str, Any]) -> dict[str, inspect.Parameter]:
    """The fields that the section takes, with their defaults."""
    described = _sections_of(tree)[section]
    return fields(described, described.target(section, _named(section, tree).get("name")))


def complete(tree: dict[str, Any]) -> Config:
    """Returns the config that `tree` describes, with every section and every default filled in.

    Raises:
        ConfigError: for a section or key that does not exist, or one that is missing.
    """
    _check_names(tree)
    known = _sections_of(tree)
    for section, content in tree.items():
        _check_section(section, known)
        if section not in PLAIN and not isinstance(content, dict):
            raise ConfigError(f"config.{section}={content!r} is no section: it takes a ConfigDict")
    done: dict[str, Any] = {field: tree.get(field, default) for field, default in PLAIN.items()}
    done["seed"] = checked_seed(done["seed"])
    for section in known:
        given, allowed = _named(section, tree), _fields(section, tree)
        named = {"name": given["name"]} if "name" in given and "name" not in allowed else {}
        for field in given:
            if field not in allowed and field not in named:
                raise ConfigError(_no_such_key(section, field, allowed))
        values = {
            field: checked(f"{section}.{field}", given[field], parameter)
            if field in given
            else parameter.default
            for field, parameter in allowed.items()
        }
        missing = [field for field, value in values.items() if value is inspect.Parameter.empty]
        if missing:
            raise ConfigError(f"config.{section}.{missing[0]} is missing")
        for field, value in values.items():
            if isinstance(value, float) and math.isnan(value):
                raise ConfigError(f"config.{section}.{field}=nan: give a number")
        done[section] = named | values
    return ConfigDict(done)


def save_config(path: pathlib.Path, config: Config) -> None:
    """Writes a config as JSON in one step."""
    write_json(path, as_plain(config))


def as_plain(config: Config) -> dict[str, Any]:
    """Returns a config as JSON has it: with strings for infinite numbers, which JSON has not."""

    def spell(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: spell(field) for name, field in value.items()}
        if isinstance(value, (tuple, list)):
            return [spell(part) for part in value]
        return next((name for name, number in NUMBERS.items() if value == number), value)

    return spell(config.to_dict())


def read_config(path: pathlib.Path) -> Config:
    """Reads what `save_config` wrote.

    Raises:
        ConfigError: if the file is missing or damaged.
    """
    try:
        return as_config(read_json(path), str(path))
    except FileNotFoundError as error:
        raise ConfigError(
            f"no run in {path.parent}: there is no {path.name}; train one with  lsgm train"
        ) from error
    except DamagedError as error:
        raise ConfigError(f"{error}: run  lsgm train  again with the same config to restore it") from error


def as_config(saved: dict[str, Any], origin: str) -> Config:
    """Returns the config that was saved as JSON, by this version or an older one.

    Args:
        saved: section -> field -> value.
        origin: the file, for messages.
    """
    return complete(current(_from_json(saved), origin))


def differences(old: Config, new: Config) -> list[str]:
    """Returns the keys in which two complete configs differ, as "a.b=1, not 2"."""
    left, right = _flat(old.to_dict()), _flat(new.to_dict())
    keys = [key for key in left | right if left.get(key) != right.get(key)]
    return [f"{key}={left.get(key)!r}, not {right.get(key)!r}" for key in keys]


def _run_config_file(path: str) -> dict[str, Any]:
    file, _, _ = path.partition(":")
    if not pathlib.Path(file).is_file():
        known = sorted(str(p) for p in pathlib.Path("configs").glob("*.py"))
        listing = f": there are {', '.join(known)}{did_you_mean(file, known)}" if known else ""
        raise ConfigError(f"no config file {file}{listing}")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["lsgm", f"--config={path}"])
    try:
        values(["lsgm", f"--config={path}"])
        config: Config = values["config"].value
        return config.to_dict()
    # A config file is the user's program: whatever it raises is reported as its fault.
    except Exception as error:
        raise ConfigError(f"{path} does not load: {first_line(_root(error))}") from error


def _root(error: BaseException) -> BaseException:
    """The exception that set off the chain."""
    before = error.__cause__ or error.__context__
    return _root(before) if before else error


def _split_override(override: str) -> tuple[str, str]:
    key, separator, value = override.removeprefix("--config.").partition("=")
    if not separator:
        raise ConfigError(f"{override} has no value: write --config.{key}=VALUE")
    return key, value


def _sections_of(tree: dict[str, Any]) -> dict[str, Section]:
    return sections(tree.get("model", PLAIN["model"]))


def _check_names(tree: dict[str, Any]) -> None:
    """Raises a ConfigError for a name that is no text, which no table can have."""
    names = {"model": tree.get("model")}
    names |= {
        f"{key}.name": section.get("name") for key, section in tree.items() if isinstance(section, dict)
    }
    for key, name in names.items():
        if not isinstance(name, str | None):
            raise ConfigError(f"config.{key}={shown(name)}: give a name")


def _check_section(section: str, known: dict[str, Section]) -> None:
    names = [*PLAIN, *known]
    if section not in names:
        if (now := renamed_to(section)) is not None:
            raise ConfigError(f"config.{section} is now config.{now}")
        near = did_you_mean(section, names)
        raise ConfigError(f"config.{section} does not exist: there are {', '.join(names)}{near}")


def _no_such_key(section: str, field: str, allowed: Any) -> str:
    if not field:
        return f"config.{section} is a section: set one of {', '.join(allowed)}"
    if (now := renamed_to(section, field)) is not None:
        return f"config.{section}.{field} is now config.{now}"
    near = did_you_mean(field, allowed)
    names = ", ".join(allowed) or "no fields"
    return f"config.{section}.{field} does not exist: {section} takes {names}{near}"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _from_json(tree: Any) -> Any:
    """JSON has lists where a config has tuples, and strings for infinite numbers; see `as_plain`."""
    if isinstance(tree, dict):
        return {name: _from_json(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return tuple(map(_from_json, tree))
    return NUMBERS.get(tree, tree) if isinstance(tree, str) else tree
