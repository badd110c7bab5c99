"""The digits equal those of scikit-learn; folders and errors behave as documented."""

import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from lsgm_jax.data.digits import Digits
from lsgm_jax.data.pipeline import split_labels, training_batches, whole_split
from lsgm_jax.data.points import PointSpec
from lsgm_jax.data.sources import FolderSource, open_split
from lsgm_jax.data.spec import DataSpec, Split
from lsgm_jax.errors import DataError


@pytest.fixture
def spec(data_dir):
    return DataSpec(source="digits", image_shape=(8, 8, 1), levels=17, batch_size=64, data_dir=str(data_dir))


def rows(images):
    """Images as a sorted list of tuples, so that sets with repetitions can be compared."""
    return sorted(map(tuple, images.reshape(len(images), -1).astype(int)))


def test_splits_hold_every_digit_once_with_its_grey_levels(spec):
    splits = [whole_split(spec, split) for split in ("train", "validation", "test")]
    assert [len(x) for x in splits] == [1437, 120, 240]
    levels = np.round((np.concatenate(splits) + 1) * 8)
    assert rows(levels) == rows(load_digits().images)


def test_the_digits_are_a_tfds_data_set(data_dir, spec):
    whole_split(spec, "test", limit=1)
    files = [path.name for path in (data_dir / "digits" / "1.0.0").iterdir()]
    assert any(".array_record-" in name for name in files)
    record = open_split("digits", "test[:1]", str(data_dir))[0]
    assert Image.open(io.BytesIO(record.image)).format == "PNG"
    assert 0 <= record.label < 10


def test_digits_that_another_process_prepares_meanwhile_are_used(tmp_path, monkeypatch):
    """TFDS then finds the folder in place when it is done, with the same content."""
    prepare = Digits.download_and_prepare

    def too_late(self):
        prepare(self)
        raise FileExistsError(f"Destination {tmp_path} already exists")

    monkeypatch.setattr(Digits, "download_and_prepare", too_late)
    assert len(open_split("digits", "test", str(tmp_path))) == 240


def test_tensorflow_is_never_imported(data_dir):
    program = (
        "import sys; from lsgm_jax.data.spec import *; from lsgm_jax.data.pipeline import *;"
        "import lsgm_jax.sampling.run;"
        f"spec = DataSpec(source='digits', image_shape=(8, 8, 1), data_dir={str(data_dir)!r});"
        "next(training_batches(Split(spec, 'train'), 0)); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(60):
        path = tmp_path / "images" / f"class{index % 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def test_a_folder_is_split_by_name_alone(folder):
    splits = {name: FolderSource(folder, name).files for name in ("train", "validation", "test")}
    assert sorted(itertools.chain(*splits.values())) == sorted(folder.rglob("*.png"))
    removed = splits["train"][0]
    removed.unlink()
    assert FolderSource(folder, "test").files == splits["test"]
    assert FolderSource(folder, "train").files == splits["train"][1:]


def test_the_first_images_of_a_folder_have_all_classes(folder):
    source = FolderSource(folder, "train")
    counts = np.bincount([source.label(index) for index in range(21)], minlength=3)
    assert counts.min() >= 3, counts


def test_a_folder_trains_like_any_other_source(folder):
    spec = DataSpec(source=str(folder), image_shape=(8, 8, 1), batch_size=8)
    batch = next(training_batches(Split(spec, "train"), 0))["x"]
    assert batch.shape == (8, 8, 8, 1)
    files = FolderSource(folder, "train").files
    originals = rows(np.stack([np.asarray(Image.open(path)) for path in files]))
    assert all(row in originals for row in rows(np.round((batch + 1) * 127.5)))


def test_prepared_sub_folders_are_the_splits(folder, tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / "split" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 7).save(tmp_path / "split" / name / f"{name}.png")
    assert [p.name for p in FolderSource(tmp_path / "split", "validation").files] == ["validation.png"]


def test_a_broken_image_is_named(folder):
    broken = FolderSource(folder, "train").files[2]
    broken.write_bytes(broken.read_bytes()[:40])
    spec = DataSpec(source=str(folder), image_shape=(8, 8, 1), batch_size=8)
    with pytest.raises(DataError, match=f"cannot decode {broken}: remove or replace"):
        training_batches(Split(spec, "train"), 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist", r"'mnist' is not prepared in .*: run  lsgm data prepare mnist --source=PATH"),
        ("fashion_mnist", r"not prepared in .*download_and_prepare\(\)"),
        ("images/mine", r"TFDS has no data set 'images/mine'"),
        ("nosuchdata", "TFDS has no data set 'nosuchdata'"),
        ("/no/such/folder", "no folder /no/such/folder: set config.data.source"),
    ],
)
def test_the_error_for_missing_data_says_what_to_do(name, message, tmp_path):
    with pytest.raises(DataError, match=message):
        open_split(name, "train", str(tmp_path))


def test_the_error_for_an_empty_folder_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"no images in .*: it is empty; .*\.png"):
        open_split(str(tmp_path), "train", "")


def test_labels_of_a_folder_are_its_sub_folders(folder):
    """In all splits: the classes are those of the whole folder."""
    spec = DataSpec(source=str(folder), image_shape=(8, 8, 1))
    for split in ("train", "validation", "test"):
        files = FolderSource(folder, split).files
        assert split_labels(spec, split).tolist() == [int(file.parent.name[-1]) for file in files]


def test_images_of_one_folder_have_no_labels(tmp_path):
    for index in range(20):
        Image.new("L", (8, 8)).save(tmp_path / f"{index}.png")
    with pytest.raises(DataError, match="has no labels: set config"):
        split_labels(DataSpec(source=str(tmp_path), image_shape=(8, 8, 1)), "train")
    with pytest.raises(DataError, match="swiss_roll has no labels"):
        split_labels(PointSpec(source="swiss_roll"), "train")
