"""What the README promises, run as it stands there."""

import pathlib
import re

import pytest

from lsgm_jax import cli
from tests import tiny

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_python_example_runs(tmp_path, data_dir, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = [
        "train",
        f"--config={tiny.CONFIG}",
        "--workdir=runs/digits",
        f"--config.data.data_dir={data_dir}",
    ]
    assert cli.main([*train, *tiny.OVERRIDES]) == 0
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.strip().splitlines()) <= 12
    exec(compile(example, "README.md", "exec"), {})
    assert "(16, 8, 8, 1) images in [-1, 1]" in capsys.readouterr().out


@pytest.mark.parametrize("command", re.findall(r"^lsgm (\w+ .*?)(?:  #.*)?$", README, re.MULTILINE))
def test_commands_parse(command):
    options = cli._parse(command.split())
    assert options.command == command.split()[0]


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(target):
    assert (pathlib.Path(__file__).parent.parent / target).exists()
