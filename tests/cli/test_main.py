"""The command line as users meet it: what it prints, what it leaves, and how it fails."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from lsgm_jax.cli import main as cli
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """A `:quick` run of the real digits config, by the real command."""
    workdir = tmp_path_factory.mktemp("quick")
    assert cli.main(train_arguments(workdir, data_dir)) == 0
    return workdir


def train_arguments(workdir, data_dir, *more):
    return [
        "train",
        f"--config={tiny.CONFIG}",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        *more,
    ]


def one_line(capsys):
    """The one line on standard error; nothing may be on standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("lsgm: error: ")
    return lines[0]


def test_the_run_keeps_what_it_was_trained_on(trained):
    record = json.loads((trained / "data.json").read_text())
    assert record["images"] == {"train": 1437, "validation": 120, "test": 240}
    assert record["classes"] == [str(digit) for digit in range(10)]


def test_quick_run_learns(trained):
    """Between the validations at steps 20 and 40 the NELBO falls, by 8 nats in the first stage and 10 in the second."""
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    vae, joint = (
        [float(row["nelbo"]) for row in rows if row["stage"] == stage and row["split"] == "validation"]
        for stage in ("vae", "joint")
    )
    assert vae[1] < vae[0] - 8.0
    assert joint[1] < joint[0] - 10.0


def test_tensorboard_gets_scalars_and_pictures(trained):
    for stage in ("vae", "joint"):
        (events,) = (trained / "tensorboard" / stage).glob("events*")
        content = events.read_bytes()
        for tag in (b"train/nelbo", b"validation/nelbo", b"train/images_per_second", b"samples", b"PNG"):
            assert tag in content


def test_sample_and_evaluate(trained, capsys):
    assert cli.main(["sample", f"--workdir={trained}", "--rtol=1e-2", "--count=9"]) == 0
    printed = capsys.readouterr().out
    assert cli.main(["evaluate", f"--workdir={trained}", "--metrics=nelbo", "--config.eval.draws=4"]) == 0
    report = json.loads((trained / "report.json").read_text())
    assert f"NFE {report['nfe']}" in printed
    assert report["sample_count"] == 9
    assert report["sample_seconds"] > 0
    nelbo = report["reconstruction_lsgm"] - report["entropy_lsgm"] + report["cross_entropy_lsgm"]
    assert report["nelbo_lsgm"] == pytest.approx(nelbo)
    assert report["nelbo_lsgm_bpd"] == pytest.approx(report["nelbo_lsgm"] / (64 * np.log(2)))
    assert report["improvement"] == pytest.approx(report["nelbo_vae"] - report["nelbo_lsgm"])
    assert report["nelbo_lsgm_stderr"] > report["improvement_stderr"] > 0
    saved = np.load(trained / "samples.npz")
    assert saved["x"].shape == (9, 8, 8, 1)
    assert saved["z_0"].shape[:1] == (9,)
    picture = np.asarray(Image.open(trained / "samples.png"))
    assert picture.shape == (148, 148, 3)
    first = np.round((saved["x"][0, 0, 0, 0] + 1) * 127.5)
    assert abs(int(picture[0, 0, 0]) - first) <= 1
    assert Image.open(trained / "comparison.png").width > 3 * 148


def test_samples_depend_on_the_seed_alone(trained):
    def draw(seed):
        assert (
            cli.main(
                [
                    "sample",
                    f"--workdir={trained}",
                    "--solver=Heun",
                    "--steps=3",
                    f"--seed={seed}",
                    "--count=4",
                ]
            )
            == 0
        )
        return np.load(trained / "samples.npz")["x"]

    first = draw(1)
    np.testing.assert_array_equal(first, draw(1))
    assert not np.allclose(first, draw(2))


def test_images_go_to_noise_and_back(trained):
    """The ends of a row between test images are those images, as the model reconstructs them."""
    arguments = ["interpolate", f"--workdir={trained}", "--between=test", "--pairs=2", "--points=3"]
    assert cli.main([*arguments, "--solver=Heun", "--steps=8"]) == 0
    assert np.asarray(Image.open(trained / "interpolation.png")).shape == (2 * 50 - 2, 3 * 50 - 2, 3)


def test_images_are_animated_from_noise_to_sample(trained):
    """The last frame and the last column of the still show the same images, which are not those of the noise."""
    arguments = ["animate", f"--workdir={trained}", "--solver=Heun", "--steps=4", "--count=4", "--frames=3"]
    assert cli.main(arguments) == 0
    still = np.asarray(Image.open(trained / "paths.png"), float)[24:]
    with Image.open(trained / "paths.gif") as animation:
        assert animation.n_frames == 3
        animation.seek(2)
        last = np.asarray(animation.convert("RGB"), float)[24:]
    first, final = still[:48, :48], still[:48, -48:]
    assert np.abs(last[:48, :48] - final).max() < 12.0
    assert np.abs(first - final).max() > 12.0


@pytest.mark.slow
def test_more_latents_tighten_the_bound(trained):
    """The importance-weighted bound of two latents is below the bound of one, on average."""
    few = ["--solver=Heun", "--steps=4", "--config.eval.importance_draws=2", "--config.eval.draws=1"]
    assert cli.main(["evaluate", f"--workdir={trained}", "--metrics=ode,iw", *few]) == 0
    report = json.loads((trained / "report.json").read_text())
    assert report["nelbo_iw_draws"] == 2
    assert (report["nelbo_ode_nfe"], report["nelbo_ode_products"]) == (8, 8)
    assert report["nelbo_lsgm_iw"] < report["nelbo_lsgm_ode"]


def test_a_likelihood_by_a_solver_of_no_ode_is_refused(trained, capsys):
    assert cli.main(["evaluate", f"--workdir={trained}", "--solver=DDIM", "--steps=4"]) == 2
    assert "'DDIM' integrates no ODE" in one_line(capsys)


def test_params_prints_json_and_allocates_nothing(capsys):
    assert cli.main(["params", f"--config={tiny.CONFIG}"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert set(described) == {
        "parameters",
        "latent_shape",
        "multiply_add_flops_per_image",
        "flops_per_image",
    }
    assert set(described["flops_per_image"]) == {"autoencoder", "score_net", "train_step"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", f"--config={tiny.CONFIG}"], "required: --workdir"),
        (
            ["train", f"--config={tiny.CONFIG}", "--workdir=x", "--config.scroe.name=x"],
            "did you mean 'score'",
        ),
        (["train", "--config=configs/nope.py", "--workdir=x"], "no config file configs/nope.py"),
        (["train", f"--config={tiny.CONFIG}", "--workdir=x", "--confg.a=1"], "does not know --confg.a=1"),
        (["sample", "--workdir=/nonexistent"], "no run in /nonexistent: .*lsgm train"),
        (["sample", "--workdir=x", "--steps=few"], "argument --steps: invalid int value: 'few'"),
        (["sample", "--workdir=x", "--confg.seed=1"], "lsgm sample does not know --confg.seed=1"),
        (["evaluate", "--workdir=/nonexistent", "--metrics=bleu"], "'bleu' is none of nelbo, ode, iw, fid"),
        (["train", f"--config={tiny.CONFIG}", "--workdir=/proc/nope"], "/proc/nope.*another --workdir"),
        (
            ["train", f"--config={tiny.CONFIG}", "--workdir={tmp}/w", "--config.data.source=/no/folder"],
            "no folder /no/folder",
        ),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    line = one_line(capsys)
    assert re.search(message, line), line


def test_help_is_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    assert "lsgm train" in capsys.readouterr().out


@pytest.mark.parametrize(
    "option",
    [
        "--solver=Nope",
        "--count=0",
        "--solver=Euler",
        "--rtol=-1",
        "--rtol=0",
        "--steps=0",
        "--grid=edm",
        "--config.seed=1",
    ],
)
def test_sampling_refuses_bad_settings_and_keeps_what_is_there(trained, option, capsys):
    (trained / "samples.png").write_bytes(b"precious")
    assert cli.main(["sample", f"--workdir={trained}", option]) == 2
    one_line(capsys)
    assert (trained / "samples.png").read_bytes() == b"precious"


def test_another_config_does_not_overwrite_a_run(trained, data_dir, capsys):
    before = (trained / "config.json").read_text()
    assert cli.main(train_arguments(trained, data_dir, "--config.data.batch_size=32")) == 2
    assert "holds a run with data.batch_size=64, not 32" in one_line(capsys)
    assert (trained / "config.json").read_text() == before


def test_samples_that_cannot_be_written_are_named(trained, tmp_path, capsys):
    """By their own name, not by that of a temporary file, and none of these stays."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "samples.npz").unlink(missing_ok=True)
    (run / "samples.npz").mkdir()
    assert cli.main(["sample", f"--workdir={run}", "--solver=Heun", "--steps=2", "--count=1"]) == 2
    assert f"{run}/samples.npz" in one_line(capsys)
    assert not list(run.glob("*.tmp"))


@pytest.mark.slow
def test_sigkill_and_the_same_command_again(trained, tmp_path, data_dir):
    """Killed from outside in mid-run, the same command ends with the parameters of the run never stopped."""
    command = [sys.executable, "-m", "lsgm_jax.cli", *train_arguments(tmp_path, data_dir)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    while not (tmp_path / "checkpoints" / "joint" / "20").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cli.main(train_arguments(tmp_path, data_dir)) == 0
    from tests.training.test_resume import final_state

    tiny.assert_trees_equal(final_state(trained), final_state(tmp_path))
