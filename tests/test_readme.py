"""What the README and the how-tos promise, run as it stands there."""

import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.cli import main as cli
from lsgm_jax.cli import parser as command_line
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.objectives.time_densities import Optimal
from lsgm_jax.objectives.weightings import likelihood
from lsgm_jax.processes import linear
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]}
COMMANDS = {
    command: path
    for path, text in PAGES.items()
    for command in re.findall(r"^(?:srun )?lsgm (\w+ .*?)(?:  #.*)?$", text, re.MULTILINE)
}
LINKS = [(path, link) for path, text in PAGES.items() for link in re.findall(r"\]\((?!http)([^)#]+)\)", text)]


def test_python_example_runs(tmp_path, data_dir, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = [
        "train",
        f"--config={tiny.CONFIG}",
        "--workdir=runs/digits",
        f"--config.data.data_dir={data_dir}",
        "--config.train.vae_steps=2",
        "--config.train.steps=2",
    ]
    assert cli.main([*train, *tiny.OVERRIDES]) == 0
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(example.strip().splitlines()) <= 14
    exec(compile(example, "README.md", "exec"), {})
    assert "(16, 8, 8, 1) images in [-1, 1]" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    """Options exist, and so do the keys that are overridden."""
    words = shlex.split(command)
    options = command_line.parse(words)
    assert options.command == words[0]
    overrides = [word for word in words if word.startswith("--config.")]
    config = re.search(r"--config=(\S+)", command)
    if (
        overrides and config and (ROOT / config[1]).exists()
    ):  # a how-to may name a config that the reader writes
        experiment(load_config(str(ROOT / config[1]), overrides))


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_somewhere(page, link):
    assert (page.parent / link).exists()


def test_the_process_of_the_howto_is_one():
    """It obeys its own moment equation, and the whole objective takes it."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGES[ROOT / "docs/howto/process.md"], re.DOTALL)
    names = {}
    exec(compile(example, "process.md", "exec"), names)
    process, t = names["CosineVP"](), jnp.linspace(0.05, 0.95, 10)
    slope = jax.jvp(lambda t: linear.kernel(process, t).signal[:, 0], (t,), (jnp.ones_like(t),))[1]
    np.testing.assert_allclose(
        slope, process.drift(t)[:, 0, 0] * linear.kernel(process, t).signal[:, 0], rtol=1e-4
    )
    density = Optimal(weighting=likelihood)
    assert jnp.isfinite(density.density(process, density.quantile(process, t))).all()


def test_the_solvers_of_the_howto_sample():
    """Both follow the flow, which leaves standard Gaussian data where they are."""
    (example,) = re.findall(r"```python\n(.*?)```", PAGES[ROOT / "docs/howto/solvers.md"], re.DOTALL)
    names = {}
    exec(compile(example, "solvers.md", "exec"), names)
    flow, fixed = names["solutions"]
    z_1 = linear.sample_prior(names["process"], jax.random.split(names["key"])[0], names["shape"])
    np.testing.assert_allclose(flow.z_0, z_1, atol=5e-3)
    assert flow.success.all()
    np.testing.assert_allclose(fixed.z_0, z_1, atol=0.05)
    assert int(fixed.nfe) == 300
