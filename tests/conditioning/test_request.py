"""Conditional models by the commands: trained on the digits in a few steps, sampled with requests, refused."""

import csv
import json

import jax
import numpy as np
import pytest
from PIL import Image

from lsgm_jax.cli import main as cli
from lsgm_jax.evaluation import plots
from lsgm_jax.sampling.inpaint import upscale
from lsgm_jax.sampling.run import Run
from tests import on_one_machine, tiny
from tests.cli.test_main import one_line

CONFIG = str(tiny.ROOT / "configs" / "ldm_digits.py") + ":quick"
SMALL = [
    "--config.score.channels=(8,)",
    "--config.score.attention=()",
    "--config.discriminator.channels=4",
    "--config.data.batch_size=16",
    "--config.train.first_stage_steps=4",
    "--config.train.steps=4",
    "--config.train.eval_every=4",
    "--config.train.log_every=2",
    "--config.gan_loss.start=2",
]
FEW = ["--steps=3", "--count=4"]


def training(workdir, data_dir, *more):
    return [
        "train",
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        *SMALL,
        *more,
    ]


def train(workdir, data_dir, *more):
    return cli.main(training(workdir, data_dir, *more))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, data_dir):
    """An LDM of the digits, conditioned on their class."""
    workdir = tmp_path_factory.mktemp("labelled")
    assert train(workdir, data_dir) == 0
    return workdir


@pytest.fixture(scope="module")
def holes(tmp_path_factory, data_dir, labelled):
    """One that fills in, on the same first stage."""
    workdir = tmp_path_factory.mktemp("holes")
    task = "--config.conditioning.name=inpainting"
    assert train(workdir, data_dir, task, f"--config.train.first_stage_from={labelled}") == 0
    return workdir


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A picture and a mask of the digits' size, and some that are wrong."""
    folder = tmp_path_factory.mktemp("files")
    rng, mask = np.random.default_rng(0), np.zeros((8, 8), np.uint8)
    mask[2:5, 3:8] = 255
    pictures = {
        "picture": rng.integers(0, 256, (8, 8), np.uint8),
        "mask": mask,
        "black": 0 * mask,
        "large": np.zeros((16, 16), np.uint8),
        "small": rng.integers(0, 256, (4, 4), np.uint8),
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def samples(workdir):
    with np.load(workdir / "samples.npz") as arrays:
        return arrays["x"]


def sample(workdir, *more):
    assert cli.main(["sample", f"--workdir={workdir}", *FEW, *more]) == 0
    return samples(workdir)


def test_samples_depend_on_label_and_guidance(labelled):
    """The noise is the same, so all else is the requested condition; a name is as good as a number."""
    three, four = sample(labelled, "--label=3"), sample(labelled, "--label=4")
    assert np.any(three != four)
    assert np.any(sample(labelled, "--label=3", "--guidance=3") != three)
    np.testing.assert_array_equal(sample(labelled, "--label=3,4")[::2], three[::2])
    np.testing.assert_array_equal(
        sample(labelled, "--guidance=0"), sample(labelled, "--guidance=0", "--label=3")
    )


def test_unasked_every_class_gets_as_many(labelled):
    everything = sample(labelled, "--count=20")
    assert json.loads((labelled / "report.json").read_text())["sample_count"] == 20
    one_each = sample(labelled, "--count=20", "--label=" + ",".join(str(i // 2) for i in range(20)))
    np.testing.assert_allclose(everything, one_each, atol=1e-5)


def test_what_lies_between_samples_has_a_label_in_every_row(labelled, monkeypatch):
    """Which changes the images of its row alone: before they are rounded, for four steps have not taught much."""
    drawn = []
    monkeypatch.setattr(plots, "grid", lambda x, *_: drawn.append(x) or np.zeros((1, 1, 3), np.uint8))
    for label in ("3", "3,4"):
        arguments = ["interpolate", f"--workdir={labelled}", "--steps=3", "--pairs=2", "--points=3"]
        assert cli.main([*arguments, f"--label={label}"]) == 0
    (three, other_three), (same, four) = (np.split(x, 2) for x in drawn)
    np.testing.assert_array_equal(three, same)
    assert np.any(other_three != four)


def judging(workdir):
    quick = ["--samples=32", "--steps=3", "--config.eval.batch_size=16", "--config.eval.classifier_steps=1"]
    return ["evaluate", f"--workdir={workdir}", "--metrics=fid", *quick]


def judged(workdir):
    (report,) = json.loads((workdir / "report.json").read_text())["distances"].values()
    return report


def test_asked_for_classes_are_judged(labelled, capsys):
    """By a classifier of the data set, whose share of agreement is part of the report."""
    assert cli.main(judging(labelled)) == 0
    report = judged(labelled)
    assert 0.0 <= report["class_accuracy"] <= 1.0
    assert report["class_accuracy"] * 32 == round(report["class_accuracy"] * 32)
    assert report["fid_ldm"] > 0.0
    assert report["fid_first_stage"] > 0.0
    assert report["psnr_first_stage"] > 0.0
    assert "class accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_one_device_equals_eight(labelled, data_dir, tmp_path):
    """Generator and discriminator, the prior with its dropped labels, samples of every class, reconstructions."""
    assert cli.main(judging(labelled)) == 0
    for arguments in (training(tmp_path, data_dir), judging(tmp_path)):
        on_one_machine.run_alone("lsgm_jax.cli", *arguments, devices=8)
    one, eight = (list(csv.DictReader((folder / "metrics.csv").open())) for folder in (labelled, tmp_path))
    assert len(one) == len(eight)
    for expected, found in zip(one, eight, strict=True):
        for name in expected.keys() - {"images_per_second"}:
            same = expected[name] == found[name]
            assert same or float(found[name]) == pytest.approx(float(expected[name]), rel=1e-4), name
    for name in ("fid_ldm", "fid_first_stage", "psnr_first_stage", "class_accuracy"):
        assert judged(tmp_path)[name] == pytest.approx(judged(labelled)[name], rel=1e-3), name


@pytest.mark.parametrize("workdir", ["labelled", pytest.param("holes", marks=pytest.mark.slow)])
def test_only_the_hole_is_filled_in(workdir, files, request):
    """By a model that learned to, and by one that is held to what is known."""
    folder = request.getfixturevalue(workdir)
    given = [f"--image={files / 'picture.png'}", f"--mask={files / 'mask.png'}"]
    assert cli.main(["inpaint", f"--workdir={folder}", *given, "--steps=3", "--count=2"]) == 0
    picture, mask = (np.asarray(Image.open(files / f"{name}.png")) for name in ("picture", "mask"))
    known = np.floor(picture / 256.0 * 17.0) * 255.0 / 16.0  # the digits have 17 levels
    found = [np.asarray(Image.open(folder / f"inpainted_{number}.png"))[..., 0] for number in range(2)]
    for filled in found:
        assert np.abs(filled[mask == 0] - known[mask == 0]).max() <= 1.0
    assert np.any(found[0] != found[1])
    assert (folder / "inpainted.png").exists()


@pytest.mark.slow
def test_small_pictures_become_large(labelled, data_dir, files, tmp_path):
    task = "--config.conditioning.name=upscaling"
    assert train(tmp_path, data_dir, task, f"--config.train.first_stage_from={labelled}") == 0
    given = [f"--image={files / 'small.png'}", f"--out={tmp_path / 'here.png'}", "--count=1", "--steps=3"]
    assert cli.main(["upscale", f"--workdir={tmp_path}", *given]) == 0
    assert np.asarray(Image.open(tmp_path / "here_0.png")).shape == (8, 8, 3)
    run = Run.open(tmp_path, ["--config.steps.steps=3"])
    params, _ = run.best()
    small = np.stack([np.full((4, 4, 1), level, np.float32) for level in (-1.0, 1.0)])
    dark, light = (upscale(run, params, x[None], jax.random.key(0))[0] for x in small)
    assert np.any(dark != light)  # the noise is the same


@pytest.mark.slow
def test_an_lsgm_is_conditional_as_well(data_dir, tmp_path):
    """Trained jointly: encoder, decoder, and a prior conditioned on the digit."""
    steps = ["--config.train.vae_steps=4", "--config.train.steps=4", "--config.train.eval_every=4"]
    arguments = [f"--config={tiny.CONFIG}", *tiny.OVERRIDES, f"--config.data.data_dir={data_dir}", *steps]
    conditioning = ["--config.conditioning.name=labels", "--config.conditioning.classes=10"]
    assert cli.main(["train", f"--workdir={tmp_path}", *arguments, *conditioning]) == 0
    fixed = ["--solver=DDIM", "--steps=3"]
    # The table of classes starts to matter once the network does: after four steps, by a hair.
    guided = sample(tmp_path, *fixed, "--label=3", "--guidance=50")
    assert np.any(guided != sample(tmp_path, *fixed, "--label=3"))
    few = ["--config.eval.draws=1", "--metrics=nelbo"]
    assert cli.main(["evaluate", f"--workdir={tmp_path}", *few]) == 0


@pytest.mark.slow
def test_texts_are_asked_for_by_prompt(labelled, data_dir, tmp_path, capsys):
    """The digits have none of their own: their classes make them."""
    text = ["name=text", "pieces=60", "length=12", "width=8", "layers=1", "heads=1", "head_width=8"]
    text = [f"--config.conditioning.{field}" for field in text]
    assert train(tmp_path, data_dir, *text, f"--config.train.first_stage_from={labelled}") == 0
    assert "photo" in (tmp_path / "vocabulary.txt").read_text()
    three, four = (sample(tmp_path, f"--prompt=a photo of a {digit}", "--guidance=9") for digit in (3, 4))
    assert np.any(three != four)
    capsys.readouterr()
    assert cli.main(["sample", f"--workdir={tmp_path}", "--prompt=" + "photo " * 30]) == 2
    assert "has 30 word pieces, and there is room for 10" in one_line(capsys)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sample", "--label=10"], "--label=10: there are the classes 0 to 9"),
        (["sample", "--label=three"], "--label=three: "),
        (["sample", "--prompt=a cat"], "--prompt=a cat: this model's samples have no prompt"),
        (["sample", "--label=1", "--prompt=a"], "not allowed with"),
        (["sample", "--guidance=-1"], "guidance=-1.0: give a finite number, 0 or more"),
        (["upscale", "--image=small.png"], "this model does no super-resolution"),
        (["inpaint", "--image=picture.png", "--mask=large.png"], "large.png has 16 x 16 pixels"),
        (["inpaint", "--image=picture.png", "--mask=black.png"], "black.png is black all over"),
        (["inpaint", "--image=nothing.png", "--mask=mask.png"], "nothing.png: No such file"),
        (["inpaint", "--image=large.png", "--mask=mask.png"], "this model has 8 x 8, scale it first"),
        (["inpaint", "--image=picture.png", "--mask=mask.png", "--solver=Heun", "--steps=3"], "DDIM"),
        (
            ["inpaint", "--image=picture.png", "--mask=mask.png", "--count=0"],
            "--count: invalid int value: '0'",
        ),
        (["evaluate"], "an LDM gives images no likelihood"),
    ],
)
def test_what_the_model_does_not_know_is_refused_in_one_line(labelled, files, capsys, command, message):
    given = [part.replace("=", f"={files}/", 1) if part.endswith(".png") else part for part in command]
    capsys.readouterr()
    assert cli.main([given[0], f"--workdir={labelled}", *given[1:]]) == 2
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["conditioning.classes=4"], "config.conditioning.classes=4: digits has labels up to 9"),
        (["sampling.guidance=2.0", "conditioning.name=none"], "is for a model of conditions"),
        (["autoencoder.latent_channels=5"], "holds a run with autoencoder.latent_channels=4, not 5"),
        (["score.name=ldm"], "config.score"),
        (["data.image_shape=(7,7,1)"], "cannot be halved 1 times"),
        (["process.schedule=wrong"], "'wrong' is none of"),
    ],
)
def test_configs_that_do_not_fit_are_refused_in_one_line(
    labelled, data_dir, tmp_path, capsys, overrides, message
):
    """Before anything is written."""
    capsys.readouterr()
    given = [f"--config.{override}" for override in overrides]
    assert train(tmp_path / "run", data_dir, f"--config.train.first_stage_from={labelled}", *given) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "run").exists()
