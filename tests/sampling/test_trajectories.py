"""Pictures of how samples come about: what they show, what they leave, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lsgm_jax.arrays import coordinates
from lsgm_jax.cli import main as cli
from lsgm_jax.evaluation import trajectory_plots
from lsgm_jax.processes import linear
from lsgm_jax.processes.ve import VE
from lsgm_jax.processes.vp import VP
from lsgm_jax.sampling import trajectories as animate
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.grids import Linear
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, draw_noise
from tests import toy
from tests.tiny import ROOT

FEW = ("--solver=SSCS", "--steps=5", "--count=30")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """CLD-SGM on points, trained for seconds."""
    folder = tmp_path_factory.mktemp("toy")
    config = f"--config={ROOT}/configs/cld_toy.py:quick"
    assert cli.main(["train", config, f"--workdir={folder}", "--config.train.steps=20"]) == 0
    return folder


def command(workdir, *more):
    return cli.main(["animate", f"--workdir={workdir}", *more])


def test_a_run_of_points_gets_an_animation_and_a_still(workdir, capsys):
    assert command(workdir, *FEW, "--frames=3") == 0
    assert "paths.gif and paths.png: from noise to data by SSCS" in capsys.readouterr().out
    with Image.open(workdir / "paths.gif") as animation:
        assert animation.n_frames == 3
        assert animation.info["loop"] == 0
        durations, shown = [], []
        for index in range(3):
            animation.seek(index)
            durations.append(animation.info["duration"])
            shown.append(np.asarray(animation.convert("RGB"), float))
    assert durations == [2000, 2000, 2000]
    assert np.abs(shown[0] - shown[2]).max() > 100.0
    assert shown[0].max() == 255.0
    assert Image.open(workdir / "paths.png").width > 400


def test_ways_end_in_what_the_model_samples(workdir):
    """With velocities beside them, and whatever number is solved at a time."""
    run = Run.open(
        workdir, ["--config.solver.name=Heun", "--config.steps.name=linear", "--config.steps.steps=4"]
    )
    (params, _), sampler = run.best(), run.experiment.sampler
    times = np.linspace(1.0, sampler.t_min, 5, dtype=np.float32)
    x, v = animate.follow(run, params, sampler, times, 7, seed=3)
    assert x.shape == v.shape == (5, 7, 2)
    (key,) = jax.random.split(jax.random.key(3), 1)
    np.testing.assert_allclose(x[-1], run.model.sample(params, key, 7, sampler)[0], rtol=1e-4, atol=1e-5)
    noise = draw_noise(sampler, run.model.process(params), jax.random.split(key)[0], (7, 2))
    np.testing.assert_allclose(x[0], noise.x, rtol=1e-5)
    np.testing.assert_allclose(v[0], noise.v, rtol=1e-5)


def test_many_samples_are_solved_a_batch_at_a_time(workdir, monkeypatch):
    monkeypatch.setitem(animate.BATCHES, "points", 3)
    run = Run.open(
        workdir, ["--config.solver.name=Heun", "--config.steps.name=linear", "--config.steps.steps=2"]
    )
    x, _ = animate.follow(run, run.best()[0], run.experiment.sampler, np.float32([1.0, 0.5]), 7, seed=0)
    assert x.shape == (2, 7, 2)
    assert len(np.unique(x[0, :, 0])) == 7  # no batch repeats another's noise


def test_images_of_an_lsgm_are_decoded_on_the_way(x64):
    model = toy.lsgm()
    params, key = model.init(jax.random.key(0)), jax.random.key(1)
    sampler = Sampler(method=METHODS["Heun"](), steps=Linear(steps=3), t_min=0.01)
    z_1 = draw_noise(sampler, model.process(params), jax.random.key(2), (4, *model.latent_shape))
    images, path = model.decode_path(params, z_1, key, sampler, jnp.asarray([1.0, 0.4, 0.01]))
    np.testing.assert_allclose(images[-1], model.decode(params, z_1, key, sampler)[0], rtol=1e-10)
    for index in (0, 1):
        latents = coordinates(path.states)[0][index]
        np.testing.assert_allclose(images[index], model.vae.decode(params["vae"], latents, key), rtol=1e-10)


def test_large_noise_is_shown_in_units_of_its_standard_deviation():
    """VE's points have a variance of up to thousands, in the picture of one; those of VP are as they are."""
    times, keys = np.array([1.0, 0.5, 0.1]), jax.random.split(jax.random.key(0), 2)
    points = jax.random.normal(keys[0], (4000, 2))
    for process, scaled in ((VE(sigma2_max=2500.0), True), (VP(), False)):
        noise = jax.random.normal(keys[1], points.shape)
        x = [linear.perturb(process, points, jnp.full(4000, t), noise) for t in times]
        way = trajectory_plots.PlanePaths(times, np.stack(x), None, None)
        shown = animate._scaled(way, process)
        np.testing.assert_allclose(shown.x.std(axis=(1, 2)), 1.0, atol=0.03)
        assert (way.x[0].std() > 10.0) == scaled == (shown.unit != "")


def test_frames_follow_the_points():
    """A cloud that moves from left to right does so in the picture of the plane and over the time axis."""
    rng, times = np.random.default_rng(0), np.linspace(1.0, 0.0, 9)
    x = 0.1 * rng.normal(size=(9, 50, 2))
    x[..., 0] += np.linspace(-2.0, 2.0, 9)[:, None]
    frames = list(trajectory_plots.plane_frames(trajectory_plots.PlanePaths(times, x, None, None), 3))
    ink = [255.0 - frame.astype(float).min(axis=2) for frame in frames]
    ink = [picture - np.minimum.reduce(ink) for picture in ink]  # without axes and labels
    half = frames[0].shape[1] // 2
    centre = [np.average(np.arange(half), weights=picture[:, :half].sum(axis=0)) for picture in ink]
    assert centre[0] + 50 < centre[1] < centre[2] - 50
    assert ink[0][:, half:].sum() < ink[1][:, half:].sum() < ink[2][:, half:].sum()  # lines grow


def test_frames_of_images_show_their_values(tmp_path):
    rng, times = np.random.default_rng(0), np.array([1.0, 0.5, 0.0])
    x = np.clip(rng.normal(size=(3, 4, 8, 8, 1)), -1.0, 1.0)
    frames = list(trajectory_plots.image_frames(times, x, labels=0))
    trajectory_plots.save_gif(tmp_path / "paths.gif", frames, seconds=1.0, pause=3.0)
    with Image.open(tmp_path / "paths.gif") as animation:
        for index, expected in enumerate(frames):
            animation.seek(index)
            assert animation.info["duration"] == (3000 if index == 2 else 500)
            shown = np.asarray(animation.convert("RGB"), float)
            assert np.abs(shown - expected).max() < 12.0
    still = trajectory_plots.image_still(times, x, labels=0)
    assert still.shape == (24 + 4 * 50 - 2, 3 * 48 + 2 * 16, 3)
    np.testing.assert_array_equal(still[24 + 50, 48 + 16, 0], np.round((x[1, 1, 0, 0, 0] + 1.0) * 127.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--frames=1",), "--frames: invalid int value: '1': give 2 "),
        (("--count=0",), "--count: invalid int value: '0': give 1 "),
        (("--solver=DDIM", "--steps=3"), "'DDIM' is for processes of one coordinate"),
        (("--config.steps.max_steps=2", "--count=3"), "3 of 3 samples ran out of steps: raise"),
        (("--frames=few",), "argument --frames: invalid int value"),
    ],
)
def test_mistakes_end_with_one_line(workdir, options, message, capsys):
    assert command(workdir, *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *progress, line = [line for line in captured.err.replace("\r", "\n").splitlines() if line.strip()]
    assert all(earlier.startswith("paths:") for earlier in progress)
    assert line.startswith("lsgm: error: ")
    assert message in line
