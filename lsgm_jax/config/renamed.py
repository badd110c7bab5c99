"""Names of older versions in saved configs: existing runs open, with a note."""

from typing import Any

from lsgm_jax.training.logs import note

# Old key -> new key; a section alone, or "section.field".
KEYS = {
    "game": "gan_loss",
    "train.parts": "train.grad_accum_steps",
    "train.average_vae": "train.ema_vae",
    "train.average_first_stage": "train.ema_first_stage",
    "objective.encoder_meets_average": "objective.encoder_uses_ema",
}
# Key -> old value -> new value.
VALUES = {
    "objective.mixed_score": {"normal": "gaussian"},
    "likelihood.name": {"normal_pixels": "gaussian_pixels"},
}


def renamed_to(section: str, field: str = "") -> str | None:
    """Returns the present name of a section or field of an older version; None if it has none."""
    return KEYS.get(f"{section}.{field}" if field else section)


def current(tree: dict[str, Any], origin: str) -> dict[str, Any]:
    """Returns a saved config with the present names; prints one line if some have changed.

    Args:
        tree: section -> field -> value.
        origin: the file, for the line.
    """
    renamed: list[str] = []
    found: dict[str, Any] = {}
    for section, content in tree.items():
        name = _rename(section, renamed)
        if not isinstance(content, dict):
            found[name] = content
            continue
        found[name] = {}
        for field, value in content.items():
            key = _rename(f"{name}.{field}", renamed)
            found[name][key.partition(".")[2]] = _revalue(key, value, renamed)
    if renamed:
        note(f"{origin} is of an older version: {', '.join(renamed)}")
    return found


def _rename(key: str, renamed: list[str]) -> str:
    if key not in KEYS:
        return key
    renamed.append(f"{key} is now {KEYS[key]}")
    return KEYS[key]


def _revalue(key: str, value: Any, renamed: list[str]) -> Any:
    # Values may be lists, which no table holds.
    new = VALUES.get(key, {}).get(value) if isinstance(value, str) else None
    if new is None:
        return value
    renamed.append(f"{key}={value} is now {new}")
    return new
