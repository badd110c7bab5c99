"""What is not finite is a failure: it is counted and said, and no figure, picture or file is made of it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lsgm_jax.arrays import expand
from lsgm_jax.cli import main as cli
from lsgm_jax.config.factory import experiment
from lsgm_jax.errors import ConfigError, NumericalError, OutOfStepsError
from lsgm_jax.evaluation import plots, sample_quality
from lsgm_jax.evaluation.features import Extractor
from lsgm_jax.evaluation.sample_quality import Generator
from lsgm_jax.models.score_model import ScoreModel
from lsgm_jax.processes.linear import gaussian_eps
from lsgm_jax.processes.ve import VE
from lsgm_jax.processes.vp import VP, GeometricVP, SubVP
from lsgm_jax.sampling.failures import Failures
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.grids import Linear
from lsgm_jax.solvers.likelihood import log_density
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, sample, solve_to_noise
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.train import claim
from tests import tiny

KEY = jax.random.key(0)


def sampler(name, **fields):
    return Sampler(method=METHODS[name](), steps=Linear(steps=3), **fields)


def fails_on_the_second(process):
    """The exact noise prediction for Gaussian data, but NaN for the second of the batch."""

    def eps_net(z_t, t):
        bad = jnp.where(jnp.arange(len(t)) == 1, jnp.nan, 0.0)
        return gaussian_eps(process, z_t, t) + expand(bad, z_t)

    return eps_net


# Solves


ENDS = [(VP(), "Euler"), (VP(), "Heun"), (SubVP(), "Heun"), (GeometricVP(), "Heun"), (VE(), "Heun")]


@pytest.mark.parametrize(("process", "name"), ENDS)
def test_fixed_steps_succeed_where_they_are_finite(process, name):
    """At t = 0, where VP and sub-VP are singular."""
    net = lambda z_t, t: gaussian_eps(process, z_t, t)
    solution = sample(sampler(name, t_min=0.0), process, net, KEY, (4, 3))
    np.testing.assert_array_equal(solution.success, np.isfinite(solution.z_0).all(axis=1))
    if isinstance(process, (GeometricVP, VE)):
        assert solution.success.all()
    elif name == "Heun":
        assert not solution.success.any()


def test_one_bad_sample_fails_alone():
    process, net = VP(), fails_on_the_second(VP())
    only_the_second = [True, False, True]
    solution = sample(sampler("Heun", t_min=0.1), process, net, KEY, (3, 2))
    assert solution.success.tolist() == only_the_second
    z_0 = jnp.ones((3, 2))
    density = log_density(sampler("Heun", t_min=0.1), process, net, KEY, z_0)
    assert density.success.tolist() == only_the_second
    noise = solve_to_noise(sampler("Heun", t_min=0.1), process, net, KEY, z_0)
    assert np.isfinite(noise).all(axis=1).tolist() == only_the_second


@pytest.mark.parametrize("temperature", [np.inf, np.nan, -1.0, 0.0])
def test_temperatures_are_positive_and_finite(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature}: give a positive, finite number"):
        Sampler(temperature=temperature)


@pytest.mark.parametrize("guidance", [np.inf, np.nan, -0.5])
def test_guidance_is_finite(guidance):
    with pytest.raises(ValueError, match=f"guidance={guidance}: give a finite number"):
        Sampler(guidance=guidance)


@pytest.mark.parametrize(
    ("process", "singular"), [("vp", True), ("sub_vp", True), ("ve", False), ("geometric_vp", False)]
)
def test_singular_ends_are_refused_where_they_are_singular(process, singular):
    """A config says so at once, before anything is trained or drawn."""
    config = tiny.config("", f"--config.process.name={process}", "--config.sampling.t_min=0")
    if not singular:
        assert experiment(config).sampler.t_min == 0.0
        return
    with pytest.raises(ConfigError, match=r"config.sampling.t_min=0.0: (Sub)?VP has no noise there"):
        experiment(config)
    with_noise = tiny.config("", f"--config.process.name={process}", "--config.process.sigma2_0=0.01")
    with with_noise.unlocked():
        with_noise.sampling.t_min = 0.0
    assert experiment(with_noise).sampler.t_min == 0.0


def test_failures_are_counted_by_their_reason():
    x = np.array([[0.0], [np.nan], [1.0], [np.inf]])
    failures = Failures.among([True, True, False, False], x)
    assert failures == (4, 2, 1)
    assert isinstance(failures.error(), NumericalError)
    assert "2 of 4 samples are not finite" in str(failures.error())
    assert "1 of 4 samples ran out of steps" in str(failures.error())
    assert failures.and_of(failures) == (8, 4, 2)
    assert isinstance(Failures(4, 0, 1).error(), OutOfStepsError)


def test_black_is_not_a_picture_of_nan():
    with pytest.raises(NumericalError, match="3 values of images are not finite"):
        plots.to_bytes(np.array([np.nan, np.inf, -np.inf, 0.0]))


# Commands


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, data_dir):
    """A run of the parameters that it begins with."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny.config(data_dir)
    claim(workdir, config)
    with Checkpoints(workdir / "checkpoints" / "joint") as checkpoints:
        checkpoints.save_finished(3, jax.jit(experiment(config).model.init)(KEY), {})
    return workdir


@pytest.fixture
def workdir(fresh, tmp_path):
    return shutil.copytree(fresh, tmp_path / "run")


@pytest.fixture
def spoiled(monkeypatch):
    """Makes every third prediction of the network NaN, of the rows given by name."""

    def spoil(*methods):
        for name in methods:
            monkeypatch.setattr(ScoreModel, name, _every_third_nan(getattr(ScoreModel, name)))

    return spoil


def _every_third_nan(make):
    def spoiled(self, *args, **kwargs):
        net = make(self, *args, **kwargs)

        def eps_net(z_t, t):
            bad = jnp.where(jnp.arange(len(t)) % 3 == 1, jnp.nan, 0.0)
            return net(z_t, t) + expand(bad, z_t)

        return eps_net

    return spoiled


def lsgm(command, workdir, *more):
    return cli.main([command, f"--workdir={workdir}", "--solver=Heun", "--steps=2", *more])


def strict_report(workdir):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads((workdir / "report.json").read_text(), parse_constant=refuse)


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_samples_that_fail_are_said_and_skipped(workdir, spoiled, capsys):
    spoiled("sampling_net")
    assert lsgm("sample", workdir, "--count=5") == 1
    assert last_line(capsys).startswith("lsgm: error: 2 of 5 samples are not finite and skipped")
    with np.load(workdir / "samples.npz") as file:
        assert file["index"].tolist() == [0, 2, 3]
        assert file["x"].shape == (3, 8, 8, 1)
        assert np.isfinite(file["x"]).all()
        assert np.isfinite(file["z_0"]).all()
    assert Image.open(workdir / "samples.png").size == (98, 98)
    assert strict_report(workdir)["sample_failed"] == 2


def test_without_a_finite_sample_nothing_is_written(workdir, capsys):
    (workdir / "samples.npz").write_bytes(b"precious")
    assert lsgm("sample", workdir, "--count=5", "--temperature=1e38") == 1
    assert last_line(capsys).startswith("lsgm: error: 5 of 5 samples are not finite")
    assert (workdir / "samples.npz").read_bytes() == b"precious"
    assert not (workdir / "samples.npz.tmp").exists()
    assert not (workdir / "samples.png").exists()
    assert not (workdir / "report.json").exists()


def test_no_bound_of_what_is_not_finite(workdir, spoiled, capsys):
    """Bounds that fail are null, also where an older report has values."""
    spoiled("data_net")
    older = {"nelbo_lsgm_ode": 1.0, "nelbo_lsgm_ode_stderr": float("nan")}
    (workdir / "report.json").write_text(json.dumps(older))
    few = ("--config.eval.draws=1", "--config.eval.batch_size=72")
    assert lsgm("evaluate", workdir, "--metrics=ode", *few) == 1
    assert "nelbo_lsgm of 80, nelbo_ode of 80 of 240 samples is not finite" in last_line(capsys)
    report = strict_report(workdir)
    assert report["nelbo_lsgm"] is report["nelbo_lsgm_ode"] is None
    assert report["reconstruction_lsgm"] is not None
    assert report["nelbo_ode_failed"] == 80


def test_no_distance_of_samples_that_fail(fresh):
    """The first batch that fails ends it: a distance of the others would flatter."""
    run = Run.open(fresh, ["--config.eval.samples=40", "--config.eval.batch_size=8"])
    calls = []

    def decode(params, given, key):
        calls.append(given)
        x = np.zeros((8, 8, 8, 1), np.float32)
        return x, {"success": np.arange(8) != (5 if len(calls) == 3 else 8)}

    noise, request = lambda key: np.zeros(8), lambda rows: None
    generator = Generator(params=None, step=3, of={}, noise=noise, request=request, decode=decode)
    flat = lambda params, x: x.reshape(len(x), -1).astype(jnp.float32)
    extractor = Extractor("pixels", "1", 64, jnp.zeros(1), flat)
    with pytest.raises(
        OutOfStepsError, match="1 of 8 samples of lsgm in batch 2 ran out of steps, so there is no"
    ):
        sample_quality._describe_samples(run, "lsgm", generator, extractor, 0)
    assert len(calls) == 3


def test_parameters_that_are_not_finite_are_refused(workdir, capsys):
    like = jax.eval_shape(experiment(tiny.config("")).model.init, KEY)
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), like)
    shutil.rmtree(workdir / "checkpoints")
    with Checkpoints(workdir / "checkpoints" / "joint") as checkpoints:
        checkpoints.save_finished(3, params, {})
    assert lsgm("sample", workdir) == 1
    assert "checkpoints/joint, step 3: the parameter mixing_logit is not finite" in last_line(capsys)
