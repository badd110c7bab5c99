"""Scores and distances of a run: the same on any devices, after any interruption, and each called what it is."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from lsgm_jax.cli import main as cli
from lsgm_jax.config.factory import experiment
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.evaluation import sample_quality
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.train import claim
from tests import on_one_machine, tiny

FEW = [
    "--solver=Heun",
    "--steps=3",
    "--config.eval.draws=1",
    "--samples=100",
    "--config.eval.batch_size=48",
    "--config.eval.classifier_steps=1",
]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory, data_dir):
    """A run, with the parameters that it begins with: nothing is trained here."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny.config(data_dir)
    params = jax.jit(experiment(config).model.init)(jax.random.key(0))
    claim(workdir, config)
    for stage, part in (("vae", params["vae"]), ("joint", params)):
        with Checkpoints(workdir / "checkpoints" / stage) as checkpoints:
            checkpoints.save_finished(3, part, {})
    return workdir


def evaluate(workdir, *arguments):
    assert cli.main(["evaluate", f"--workdir={workdir}", *arguments]) == 0
    return json.loads((workdir / "report.json").read_text())


@pytest.fixture(scope="module")
def judged(fresh):
    """The run's report with everything in it."""
    return evaluate(fresh, "--metrics=nelbo,ode,fid,kid,pr", *FEW)


def assert_close(left, right):
    """Numbers but for rounding, everything else exactly."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, dict):
            assert_close(value, right[name])
        else:
            assert value == (
                pytest.approx(right[name], rel=2e-3) if isinstance(value, float) else right[name]
            )


@pytest.mark.slow
def test_one_device_equals_eight(fresh, judged, tmp_path):
    """Bounds, ODE and distances, in a process of its own, where the host pretends to have eight devices."""
    shutil.copytree(fresh, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "report.json"))
    arguments = ("evaluate", f"--workdir={tmp_path / 'run'}", "--metrics=nelbo,ode,fid,kid,pr", *FEW)
    on_one_machine.run_alone("lsgm_jax.cli", *arguments, devices=8)
    eight = json.loads((tmp_path / "run" / "report.json").read_text())
    assert_close(eight, judged)


def test_what_is_done_is_not_done_again(fresh, judged, monkeypatch, capsys):
    monkeypatch.setattr("lsgm_jax.evaluation.cache.Cache.write", None)
    assert evaluate(fresh, "--metrics=nelbo,ode,fid,kid,pr", *FEW) == judged
    printed = capsys.readouterr().out
    assert "240 samples" in printed


def test_another_seed_is_another_evaluation(fresh, judged, tmp_path):
    shutil.copytree(fresh, tmp_path / "run")
    other = evaluate(tmp_path / "run", "--metrics=nelbo", *FEW, "--seed=1")
    assert other["nelbo_lsgm"] != judged["nelbo_lsgm"]
    assert abs(other["nelbo_lsgm"] - judged["nelbo_lsgm"]) < 5 * judged["nelbo_lsgm_stderr"]


def test_the_validation_split_has_scores_of_its_own(fresh, judged, capsys):
    report = evaluate(fresh, "--metrics=nelbo", "--split=validation", *FEW)
    assert "validation split, 120 samples" in capsys.readouterr().out
    assert report["validation"]["validation_images"] == 120
    assert report["validation"]["nelbo_lsgm"] != report["nelbo_lsgm"] == judged["nelbo_lsgm"]


def test_distances_say_what_they_are_of(fresh, judged, capsys):
    ((name, entries),) = judged["distances"].items()
    assert re.match(
        r"a classifier of digits \(test accuracy \d+\.\d %; not comparable with Inception's\)", name
    )
    assert (entries["samples"], entries["reference"], entries["reference_images"]) == (100, "train", 1437)
    assert (entries["pr_images"], entries["kid_subset"], entries["samples_nfe"]) == (100, 100, 6.0)
    for model in ("lsgm", "vae"):
        assert entries[f"fid_{model}"] > 0
        assert 0 <= entries[f"precision_{model}"] <= 1
    evaluate(fresh, "--metrics=fid", *FEW)
    printed = capsys.readouterr().out
    assert name in printed
    assert "100 samples of step 3 by Heun, NFE 6.0, against 1437 images of the train split" in printed
    assert "nats" not in printed


def test_binarised_data_are_compared_with_drawn_pixels():
    """The mean of the draws is the expected image; data of grey levels keep it as it is."""
    x = np.tile(np.linspace(-1.0, 1.0, 16, dtype=np.float32).reshape(1, 4, 4, 1), (4000, 1, 1, 1))
    grey, binary = (
        DataSpec(source="digits", image_shape=(4, 4, 1), levels=2, binarise=kind)
        for kind in ("none", "dynamic")
    )
    drawn = sample_quality.as_data(x, binary, np.random.default_rng(0))
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    assert np.abs(drawn.mean(axis=0) - x[0]).max() < 5 / np.sqrt(4000)
    assert sample_quality.as_data(x, grey, np.random.default_rng(0)) is x


def test_images_without_labels_ask_for_inception(fresh, tmp_path, capsys):
    for split in ("train", "validation", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "images" / split / "a.png")
    config = tiny.config(tmp_path, f"--config.data.source={tmp_path / 'images'}")
    claim(tmp_path / "run", config)
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}", "--metrics=fid"]) == 2
    assert (
        "no labels to train a classifier on: give weights of Inception by --inception=FILE"
        in capsys.readouterr().err
    )


def test_a_time_is_of_sixteen_images(fresh, tmp_path, capsys):
    shutil.copytree(fresh, tmp_path / "run")  # whose report gets the time
    report = evaluate(tmp_path / "run", "--metrics=time", "--solver=Heun", "--steps=3")
    assert (report["time_images"], report["time_nfe"]) == (16, 6)
    assert 0 < report["time_seconds"] < 60
    assert re.search(r"16 samples by Heun: \d+\.\d+ s, NFE 6, .*median of 3", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics=fid", "--samples=3"], r"samples=3: distances take 4 at least"),
        (["--metrics=fid", "--config.eval.reference=tset"], "did you mean 'test'"),
        (["--metrics=fid", "--inception=/no/file.pth"], "/no/file.pth"),
        (["--metrics=nelbo", "--split=train"], "invalid choice: 'train'"),
        (["--metrics=nelbo,is"], "'is' is none of nelbo, ode, iw, fid, kid, pr, time"),
    ],
)
def test_mistakes_are_one_line(fresh, arguments, message, capsys):
    assert cli.main(["evaluate", f"--workdir={fresh}", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(message, captured.err.strip())
    assert len(captured.err.strip().splitlines()) == 1


def test_points_of_the_plane_have_no_features(tmp_path, capsys):
    from lsgm_jax.config.load import load_config

    config = load_config(str(tiny.ROOT / "configs" / "cld_toy.py"), [])
    claim(tmp_path, config)
    assert cli.main(["evaluate", f"--workdir={tmp_path}", "--metrics=fid"]) == 2
    assert "are no images" in capsys.readouterr().err


def test_devices_that_cannot_share_a_batch_are_told_so(fresh, monkeypatch, capsys):
    monkeypatch.setattr(jax, "device_count", lambda: 5)
    assert cli.main(["evaluate", f"--workdir={fresh}", "--metrics=nelbo", *FEW]) == 2
    assert "config.eval.batch_size=48 does not divide over 5 devices" in capsys.readouterr().err
