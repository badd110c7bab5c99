"""Many samples: in batches, to one file, with a picture of bounded size."""

import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from lsgm_jax.cli import main as cli
from lsgm_jax.evaluation import plots
from lsgm_jax.sampling.archive import growing_npz
from tests import on_one_machine
from tests.tiny import ROOT


def test_an_archive_holds_all_rows_and_memory_one_batch(tmp_path):
    """As `np.load` reads it; at no time is more than a few of forty batches in memory."""
    batches = [np.full((1000, 64), number, np.float32) for number in range(3)]
    size = batches[0].nbytes
    tracemalloc.start()
    with growing_npz(tmp_path / "x.npz") as append:
        for number in range(40):
            append({"x": batches[number % 3], "n": np.full(1000, number)})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * size
    with np.load(tmp_path / "x.npz") as file:
        assert sorted(file) == ["n", "x"]
        np.testing.assert_array_equal(file["x"], np.concatenate([batches[n % 3] for n in range(40)]))
        np.testing.assert_array_equal(file["n"], np.repeat(np.arange(40), 1000))
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_an_interrupted_archive_leaves_the_older_one(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"precious")

    def interrupted():
        with growing_npz(tmp_path / "x.npz") as append:
            append({"x": np.zeros(3)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.npz", b"precious")]


@pytest.mark.parametrize(
    "shape", [(8, 8, 1), (32, 32, 3), (256, 256, 3), (1024, 1024, 3), (5000, 5000, 1), (8, 512, 1)]
)
def test_pictures_of_many_images_are_bounded(shape):
    """No wider than 4,096 pixels, unless a single image is."""
    columns = int(np.sqrt(plots.most_shown(shape)))
    assert columns**2 == plots.most_shown(shape) <= 400
    zoom = -(-plots.MINIMUM_SIDE // min(shape[0], plots.MINIMUM_SIDE))
    assert columns == 1 or columns * (max(shape[:2]) * zoom + plots.GAP) <= plots.MOST_PIXELS
    assert plots.most_shown((8, 8, 1)) == 400


# The command, on points


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    config = f"--config={ROOT}/configs/cld_toy.py:quick"
    assert cli.main(["train", config, f"--workdir={folder}", "--config.train.steps=1"]) == 0
    return folder


def drawn(workdir, count, *more):
    arguments = ["sample", f"--workdir={workdir}", f"--count={count}", "--solver=SSCS", "--steps=3", *more]
    assert cli.main(arguments) == 0
    with np.load(workdir / "samples.npz") as file:
        assert file["index"].tolist() == list(range(count))
        return file["x"]


def test_many_samples_are_drawn_in_batches(workdir):
    """The first batch has the numbers of a draw of that size; no two samples are the same."""
    batch = "--config.eval.batch_size=16"
    one, three = drawn(workdir, 16), drawn(workdir, 40, batch)
    assert three.shape == (40, 2)
    np.testing.assert_allclose(three[:16], one, rtol=1e-5, atol=1e-5)
    assert len(np.unique(three.round(4), axis=0)) == 40
    assert Image.open(workdir / "samples.png").size[0] < 1000


@pytest.mark.slow
def test_counts_that_no_number_of_devices_divides(workdir, tmp_path):
    """Eight devices draw what one draws, in batches that eight does not divide."""
    more = ("--config.eval.batch_size=10",)
    expected = drawn(workdir, 13, *more)
    shutil.copytree(workdir, tmp_path / "run")
    arguments = ("sample", f"--workdir={tmp_path / 'run'}", "--count=13", "--solver=SSCS", "--steps=3", *more)
    on_one_machine.run_alone("lsgm_jax.cli", *arguments, devices=8)
    with np.load(tmp_path / "run" / "samples.npz") as file:
        np.testing.assert_allclose(file["x"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_one_sample_in_one_step(workdir):
    assert cli.main(["sample", f"--workdir={workdir}", "--count=1", "--solver=Euler", "--steps=1"]) == 0
    with np.load(workdir / "samples.npz") as file:
        assert file["x"].shape == (1, 2)
        assert np.isfinite(file["x"]).all()
