"""Names of older versions: saved configs are read, and an override of an old name says the present one."""

import json

import pytest

from lsgm_jax.config.load import load_config, read_config
from lsgm_jax.errors import ConfigError
from tests.tiny import CONFIG

OLD_NAMES = {
    ("train", "parts"): ("train", "grad_accum_steps", 2),
    ("train", "average_vae"): ("train", "ema_vae", False),
    ("objective", "encoder_meets_average"): ("objective", "encoder_uses_ema", True),
}


def test_configs_of_older_versions_are_read_with_one_line(tmp_path, capsys):
    """Fields, values and sections have their present names; the line names each change."""
    config = load_config(CONFIG, ["--config.objective.mixed_score=gaussian"])
    tree, expected = config.to_dict(), config.to_dict()
    for (section, old), (_, new, value) in OLD_NAMES.items():
        del tree[section][new]
        tree[section][old] = expected[section][new] = value
    tree["objective"]["mixed_score"] = "normal"
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert read_config(tmp_path / "config.json").to_dict() == expected
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert said.startswith("lsgm: note: ")
    for (section, old), (_, new, _) in OLD_NAMES.items():
        assert f"{section}.{old} is now {section}.{new}" in said
    assert "objective.mixed_score=normal is now gaussian" in said


def test_sections_of_older_versions_are_read(tmp_path, capsys):
    config = load_config(CONFIG.replace("digits.py", "ldm_digits.py"), [])
    tree = config.to_dict()
    tree["game"] = tree.pop("gan_loss")
    (tmp_path / "config.json").write_text(json.dumps(tree))
    assert read_config(tmp_path / "config.json").to_dict() == config.to_dict()
    assert "game is now gan_loss" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new"), [("train.parts=2", "train.grad_accum_steps"), ("game.start=1", "gan_loss")]
)
def test_an_override_of_an_older_name_says_the_present_one(old, new):
    with pytest.raises(
        ConfigError, match=rf"config\.{old.split('=')[0].split('.')[0]}.* is now config\.{new}"
    ):
        load_config(CONFIG.replace("digits.py", "ldm_digits.py"), [f"--config.{old}"])
