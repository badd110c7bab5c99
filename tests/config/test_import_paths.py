"""Parts of a package outside the repository, named in a config by their import paths, are parts like any other."""

import csv
import json
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgm_jax.cli import main as cli
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.errors import ConfigError
from tests import tiny

TOY = str(tiny.ROOT / "configs" / "cld_toy.py") + ":quick"
FILES = {
    "__init__.py": "",
    "cosine.py": '''
import dataclasses
import jax
import jax.numpy as jnp
from lsgm_jax.processes.vp import VariancePreserving


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineVP(VariancePreserving):
    """alpha = cos(end pi t / 2)."""

    end: float = 0.99

    def __post_init__(self):
        if isinstance(self.end, float) and not 0.0 < self.end < 1.0:
            raise ValueError(f"end={self.end}: give a number between 0 and 1")

    def _angle(self, t):
        return 0.5 * jnp.pi * self.end * t

    def beta(self, t):
        return jnp.pi * self.end * jnp.tan(self._angle(t))

    def int_beta(self, s, t):
        lost = lambda t: jnp.log1p(-jnp.sin(self._angle(t)) ** 2)  # exact for small times in float32
        return lost(s) - lost(t)

    def start(self):
        return 0.0
''',
    "nets.py": '''
import jax.numpy as jnp
from flax import linen as nn


class Wide(nn.Module):
    """One wide hidden layer."""

    out_channels: int
    width: int = 32

    @nn.compact
    def __call__(self, z_t, t, context=None, *, deterministic):
        h = nn.swish(nn.Dense(self.width, name="hidden")(jnp.concatenate([z_t, t[:, None]], axis=-1)))
        return nn.Dense(self.out_channels, name="out")(h)
''',
    "weights.py": '''
import jax.numpy as jnp


def early(process, t):
    """More weight on early times."""
    return jnp.exp(-t)
''',
    "solvers.py": '''
import dataclasses
import diffrax
from lsgm_jax.processes.linear import expected_data, perturb
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.method import Cost, Method, ReverseSolver
from lsgm_jax.solvers.terms import times_like


class Regroup(ReverseSolver):
    """DDIM."""

    def advance(self, term, step, z, memory):
        process, eps_hat = term.problem.process, term.problem.eps(z, step.t)
        data = expected_data(process, z, eps_hat, times_like(z, step.t))
        return perturb(process, data, times_like(z, step.s), eps_hat), memory


def regroup() -> Method:
    return Method(name="Regroup", scheme=Regroup(), dynamics="own", order=1, cost=Cost(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Careful(Adaptive):
    """Steps that grow by at most a factor."""

    growth: float = 2.0

    def controller(self, norm):
        return diffrax.PIDController(rtol=self.rtol, atol=self.atol, norm=norm, factormax=self.growth)
''',
}
OVERRIDES = [
    "--config.process.name=outside_parts.cosine:CosineVP",
    "--config.process.end=0.95",
    "--config.score.name=outside_parts.nets:Wide",
    "--config.score.width=16",
    "--config.objective.weighting=outside_parts.weights:early",
    "--config.objective.mixed_score=none",
]


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The folder of a package that the command finds because it is started there."""
    package = tmp_path / "outside_parts"
    package.mkdir()
    for name, text in FILES.items():
        (package / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "outside_parts"]:
        del sys.modules[name]


def test_a_run_of_outside_parts_trains_samples_and_is_studied(outside):
    """By the command alone; the config of the run remembers import paths and fields."""
    workdir = outside / "run"
    assert cli.main(["train", f"--config={TOY}", f"--workdir={workdir}", *OVERRIDES]) == 0
    config = json.loads((workdir / "config.json").read_text())
    assert config["process"] == {"name": "outside_parts.cosine:CosineVP", "end": 0.95}
    assert config["score"] == {"name": "outside_parts.nets:Wide", "width": 16}
    assert cli.main(["sample", f"--workdir={workdir}", "--count=8", "--solver=Heun", "--steps=4"]) == 0
    assert np.isfinite(np.load(workdir / "samples.npz")["x"]).all()
    regroup, careful = (f"outside_parts.solvers:{name}" for name in ("regroup", "Careful"))
    ddim = np.load(sampled(workdir, "--solver=DDIM", "--steps=4"))["x"]
    np.testing.assert_allclose(
        np.load(sampled(workdir, f"--solver={regroup}", "--steps=4"))["x"], ddim, rtol=1e-3, atol=1e-3
    )
    nfe = {}
    for growth in ("1.1", "10.0"):
        sampled(workdir, f"--config.steps.name={careful}", f"--config.steps.growth={growth}")
        nfe[growth] = json.loads((workdir / "report.json").read_text())["nfe"]
    assert nfe["1.1"] > nfe["10.0"]
    study = [f"--solvers=Heun,{regroup}", "--nfe=6", "--rtol=1e-2", "--count=16"]
    assert cli.main(["study", f"--workdir={workdir}", *study, f"--config.steps.name={careful}"]) == 0
    rows = list(csv.DictReader((workdir / "study" / "study.csv").open()))
    assert [row["solver"] for row in rows] == ["Heun", "Heun", regroup]


def sampled(workdir, *options):
    """The file of samples that the command writes."""
    assert cli.main(["sample", f"--workdir={workdir}", "--count=8", *options]) == 0
    return workdir / "samples.npz"


def test_outside_parts_are_the_objects_of_the_package(outside):
    sys.path.append(str(outside))
    prior = experiment(load_config(TOY, OVERRIDES)).model.prior
    import outside_parts.cosine
    import outside_parts.weights

    assert prior.process == outside_parts.cosine.CosineVP(end=0.95)
    assert prior.objective.prior_weighting is outside_parts.weights.early
    assert prior.net.module.width == 16
    np.testing.assert_allclose(prior.process.int_beta(jnp.zeros(()), jnp.ones(())), 5.09, atol=0.01)


def test_any_optax_transformation_is_an_optimiser():
    lines = ("name=optax:lion", "learning_rate=1e-3", "b1=0.8")
    recipe = experiment(load_config(TOY, [f"--config.optimiser.{line}" for line in lines])).training
    params, gradient = {"a": jnp.ones(3)}, {"a": jnp.arange(3.0) - 1.0}
    updates, _ = recipe.optimiser.update(gradient, recipe.optimiser.init(params), params)
    expected = optax.lion(1e-3, b1=0.8)
    np.testing.assert_array_equal(
        updates["a"], expected.update(gradient, expected.init(params), params)[0]["a"]
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("process.end=2.0", r"config\.process: end=2\.0: give a number between 0 and 1"),
        ("process.ned=0.5", r"config\.process\.ned does not exist: process takes .*did you mean 'end'"),
        ("process.end=many", r"config\.process\.end=many"),
        (
            "score.name=outside_parts.nets:Wider",
            r"config\.score\.name='outside_parts.nets:Wider' cannot be imported",
        ),
        (
            "process.name=nowhere:VP",
            r"config\.process\.name='nowhere:VP' cannot be imported: ModuleNotFoundError",
        ),
        (
            "objective.weighting=outside_parts.weights:late",
            r"config\.objective\.weighting=.* cannot be imported",
        ),
        ("process.name=outside_parts:__name__", r"is neither a class nor a function"),
        (
            "solver.name=outside_parts.solvers:Regroup",
            r"config\.solver\.name=.* makes no Method but Regroup: wrap it",
        ),
    ],
)
def test_errors_are_those_of_built_in_names(outside, override, message):
    sys.path.append(str(outside))
    with pytest.raises(ConfigError, match=message) as error:
        experiment(load_config(TOY, [*OVERRIDES, f"--config.{override}"]))
    assert "\n" not in str(error.value)
