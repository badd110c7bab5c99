"""The walks of docs/architecture.md: which files a reader opens to follow a call, checked by running it."""

import contextlib
import pathlib
import re
import sys

import jax
import pytest

import lsgm_jax
from lsgm_jax.cli import commands, parser
from lsgm_jax.config.factory import Sections, experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.train import claim
from tests import tiny

PACKAGE = str(pathlib.Path(lsgm_jax.__file__).parent) + "/"
PAGE = (tiny.ROOT / "docs" / "architecture.md").read_text()
MOST = {"the joint loss": 8, "`lsgm sample`": 12, "a field of a config": 5}
# Files of the rooms on a walk that take part in it, and that its reader need not open.
ASIDE = {
    "the joint loss": {
        "models/protocol.py": "passes the process on",
        "objectives/bound.py": "tuples, and metrics",
        "objectives/proposals.py": "belongs to a density that a config chooses",
        "objectives/score_matching.py": "the squared error within the control variate",
        "processes/vp.py": "a config chooses it",
        "processes/schedules.py": "belongs to a process that a config chooses",
        "processes/matrices.py": "algebra of k x k matrices",
        "processes/predictions.py": "a config chooses it",
    },
    "`lsgm sample`": {
        "cli/parser.py": "options as overrides",
        "config/models.py": "the walk of a field of a config",
        "config/prior.py": "the walk of a field of a config",
        "config/registry.py": "the walk of a field of a config",
        "config/renamed.py": "older configs",
        "config/specs.py": "fields of sections",
        "config/values.py": "checks of the values",
        "sampling/archive.py": "writes the samples",
        "sampling/failures.py": "counts those that failed",
        "models/lsgm.py": "which autoencoder",
        "models/vae.py": "the autoencoder",
        "solvers/registry.py": "names of solvers",
        "solvers/method.py": "a config chooses it",
        "solvers/likelihood.py": "checks its settings; sampling has no likelihood",
        "solvers/terms.py": "drift and noise for the solver",
        "solvers/nfe.py": "counting",
        "solvers/grids.py": "a config chooses it",
    },
    "a field of a config": {
        "config/models.py": "lists the sections",
        "config/renamed.py": "older configs",
        "config/specs.py": "fields of other sections",
        "config/values.py": "checks of the values",
        "processes/schedules.py": "checks of the numbers",
        "processes/linear.py": "checks that the density fits the process",
        "processes/matrices.py": "algebra of k x k matrices",
    },
}


def listed(walk):
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| {walk}"))
    files = re.findall(r"`([\w/]+\.py)`", row)
    assert int(row.rstrip(" |").rpartition("|")[2]) == len(files)
    return files


@contextlib.contextmanager
def opened():
    """The files of the package whose functions are called, in a set."""
    files = set()

    def note(frame, event, arg):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name != "<module>":
            files.add(code.co_filename.removeprefix(PACKAGE))

    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)


@pytest.fixture
def workdir(tmp_path, data_dir):
    config = tiny.config(data_dir)
    params = jax.jit(experiment(config).model.init)(jax.random.key(0))
    claim(tmp_path, config)
    with Checkpoints(tmp_path / "checkpoints" / "joint") as checkpoints:
        checkpoints.save_finished(3, params, {})
    return tmp_path


def joint_loss(workdir):
    model = tiny.model()
    params, batch = jax.eval_shape(model.init, jax.random.key(0)), tiny.batch()
    with opened() as files:
        jax.eval_shape(model.loss, params, batch, jax.random.key(1))
    return files


def sample(workdir):
    options = parser.parse(["sample", f"--workdir={workdir}", "--count=2", "--solver=Heun", "--steps=2"])
    with opened() as files:
        commands.sample_command(options)
    return files


def field(workdir):
    with opened() as files:
        config = load_config(tiny.CONFIG, ["--config.process.beta_max=10.0"])
        assert experiment(config).model.prior.process.beta_max == 10.0
        assert Sections(config)("process").beta_max == 10.0
    return files


@pytest.mark.parametrize(
    ("walk", "call"),
    [("the joint loss", joint_loss), ("`lsgm sample`", sample), ("a field of a config", field)],
)
def test_a_walk_passes_the_files_that_the_page_lists(walk, call, workdir):
    """All of them, and no other of their rooms but those set aside; and no more than the page promises."""
    files, page = call(workdir), listed(walk)
    assert len(page) <= MOST[walk]
    assert set(page) <= files
    rooms = {"models", "objectives", "processes"} if walk == "the joint loss" else {"config"}
    rooms |= {"cli", "sampling", "models", "solvers"} if walk == "`lsgm sample`" else set()
    strangers = {name for name in files if name.split("/")[0] in rooms} - set(page) - ASIDE[walk].keys()
    assert strangers == set()
