"""What a run is trained on is checked, counted and named before training, and kept."""

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from lsgm_jax.conditioning.class_labels import described, find_class
from lsgm_jax.conditioning.labels import Labels
from lsgm_jax.conditioning.request import Conditions
from lsgm_jax.data.points import PointSpec
from lsgm_jax.data.prepare import Job, prepare
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.data.survey import DATA, read_survey, survey
from lsgm_jax.errors import ConfigError, DataError, UserError
from lsgm_jax.evaluation.report import add_to_report
from tests.data.published import image_file, write

COUNTS = {"train": 6, "validation": 2, "test": 3}


def picture(path, value=0, form="PNG", size=(8, 8)):
    """Writes an image that no other has."""
    rng = np.random.default_rng([value, *os.fsencode(path)])
    return write(path, image_file(rng.integers(0, 200, size, dtype=np.uint8), form))


@pytest.fixture
def folder(tmp_path):
    for split, count in COUNTS.items():
        for name in ("cat", "dog"):
            for index in range(count):
                picture(tmp_path / "set" / split / name / f"{index}.png")
    return tmp_path / "set"


def spec(source, **fields):
    return DataSpec(**(dict(source=str(source), image_shape=(8, 8, 1), batch_size=2) | fields))


def test_splits_classes_and_other_files_are_counted(folder):
    write(folder / "train/notes.md", b"")
    write(folder / ".DS_Store", b"")
    (folder / "test/dog/copy.png").write_bytes((folder / "train/cat/0.png").read_bytes())
    found = survey(spec(folder))
    copy = folder / "test/dog/copy.png"
    assert found.lines() == [
        f"data {folder}: 12 train, 4 validation, 7 test; 2 classes: cat, dog",
        "skipped 2 files: 1 hidden, 1 .md; the first is .DS_Store",
        f"1 image in both train and test, with the same bytes; the first is {copy}",
    ]


def test_the_run_keeps_what_it_was_trained_on_and_its_report_names_the_file(folder, tmp_path):
    found = survey(spec(folder))
    found.save(tmp_path)
    assert read_survey(tmp_path) == found
    assert json.loads((tmp_path / DATA).read_text())["images"] == {
        split: 2 * n for split, n in COUNTS.items()
    }
    assert add_to_report(tmp_path, fid=1.0)["data"] == DATA
    (tmp_path / DATA).write_text("{")
    with pytest.raises(UserError, match=r"data\.json is damaged"):
        read_survey(tmp_path)


def test_points_are_counted(tmp_path):
    found = survey(PointSpec(source="swiss_roll", counts=(100, 50, 20)))
    assert found.lines() == ["data swiss_roll: 100 train, 50 validation, 20 test"]


def truncate(path, keep=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("split", list(COUNTS))
def test_a_damaged_image_of_any_split_is_found_before_training(folder, form, split):
    bad = picture(folder / split / "cat" / f"bad.{form.lower()}", form=form, size=(8, 8))
    survey(spec(folder))
    truncate(bad)
    with pytest.raises(DataError, match=f"cannot decode {bad}: remove or replace the file"):
        survey(spec(folder))


def test_a_damaged_byte_of_a_test_image_is_found_before_training(folder):
    bad = folder / "test/cat/1.png"
    content = bytearray(bad.read_bytes())
    content[60] ^= 1
    bad.write_bytes(content)
    with pytest.raises(DataError, match=f"cannot decode {bad}"):
        survey(spec(folder))


def test_a_test_image_of_another_size_is_found_before_training(folder):
    picture(folder / "test/cat/wide.png", size=(8, 9))
    with pytest.raises(DataError, match=r"wide.png has 8 x 9 pixels, not 8 x 8: set config.data.image_shape"):
        survey(spec(folder))
    assert survey(spec(folder, fit="crop")).images["test"] == 7


def test_a_prepared_image_of_another_size_is_found_before_training(folder, tmp_path):
    picture(folder / "test/cat/wide.png", size=(8, 9))
    prepare(Job(kind="folder", source=folder, data_dir=tmp_path / "data", name="mine"))
    with pytest.raises(DataError, match=r"image [0-6] of 'test' in mine has 8 x 9 pixels"):
        survey(spec("mine", data_dir=str(tmp_path / "data")))


def test_a_class_outside_the_levels_is_found_before_training(folder):
    write(folder / "test/cat/0.png", image_file(np.full((8, 8), 200, np.uint8)))
    survey(spec(folder, kind="classes", levels=256))
    with pytest.raises(DataError, match=r"test/cat/0.png has the class 200: config.data.levels=200"):
        survey(spec(folder, kind="classes", levels=200))


def test_upright_sizes_count(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("jpg", "png"):
        Image.new("L", (6, 4)).save(folder / f"test/cat/turned.{form}", exif=exif)
    with pytest.raises(DataError, match=r"turned\.(jpg|png) has 6 x 4 pixels"):
        survey(spec(folder))


def test_files_that_changed_since_the_run_began_are_said(folder):
    began = survey(spec(folder))
    assert survey(spec(folder), began).lines() == began.lines()
    picture(folder / "test/cat/new.png")
    lines = survey(spec(folder), began).lines()
    assert (
        "12 -> 12 train, 4 -> 4 validation, 6 -> 7 test): test images may have been trained on" in lines[-1]
    )
    picture(folder / "train/loose.png")
    lines = survey(spec(folder), began).lines()
    assert "images beside the folders of classes are a class of their own, '.'" in lines


def test_files_that_have_not_changed_are_not_read_again(folder, monkeypatch):
    began = survey(spec(folder))
    monkeypatch.setattr("lsgm_jax.data.survey.inspect_files", None)
    assert survey(spec(folder), began) == began


def test_a_truncated_image_that_only_decoding_finds(folder):
    """A JPEG with bytes after its end is whole all the same."""
    good = picture(folder / "test/cat/tail.jpg", form="JPEG")
    good.write_bytes(good.read_bytes() + b"trailer")
    survey(spec(folder))


# Prepared sets say the same


def test_a_prepared_set_records_other_files_and_images_in_two_splits(folder, tmp_path, capsys):
    write(folder / "train/a.svg", b"")
    (folder / "test/dog/copy.png").write_bytes((folder / "train/cat/0.png").read_bytes())
    record = prepare(Job(kind="folder", source=folder, data_dir=tmp_path / "data", name="mine")).record
    assert record["other_files"] == "1 file: 1 .svg; the first is train/a.svg"
    assert record["repeated"] == [
        f"1 image in both train and test, with the same bytes; the first is test/dog/copy.png in {folder}"
    ]
    assert record["classes"] == ["cat", "dog"]
    stored = json.loads((tmp_path / "data/prepared/mine/1.0.0/metadata.json").read_text())
    assert stored == record


def test_names_that_are_no_utf8_are_prepared(tmp_path):
    for index in range(20):
        picture(tmp_path / "set" / f"{index}.png")
        path = tmp_path / "set" / f"caf\udce9{index}" / "x.png"
        picture(path)
    assert sum(len(spec(tmp_path / "set").open(split)) for split in COUNTS) == 40
    record = prepare(
        Job(kind="folder", source=tmp_path / "set", data_dir=tmp_path / "data", name="latin")
    ).record
    assert sum(record["images"].values()) == 40
    assert record["classes"][1:3] == ["caf\\xe90", "caf\\xe91"]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    for index in range(30):
        picture(tmp_path / "set" / f"{index}.png")
    picture(tmp_path / "set/thumbs.png/1.png")
    assert sum(len(spec(tmp_path / "set").open(split)) for split in COUNTS) == 31


# Labels


def conditions(data, workdir, classes):
    conditioning = Labels(classes=classes)
    return Conditions.of_run(conditioning, data, workdir)


def test_a_label_is_the_class_of_that_name(tmp_path):
    for name in range(1, 13):
        for index in range(6):
            picture(tmp_path / "set" / str(name) / f"{index}.png")
    found = conditions(spec(tmp_path / "set"), tmp_path, 12)
    for label in map(str, range(1, 13)):
        (index,) = found.request(1, label=label)(np.arange(1))
        assert found.class_names[index] == label
        assert found.drawn(label) == f"class '{label}' (index {index})"


def test_labels_mean_the_classes_of_the_run_and_not_those_of_today(folder, tmp_path):
    survey(spec(folder)).save(tmp_path)
    picture(folder / "train/ant/0.png")
    found = conditions(spec(folder), tmp_path, 2)
    assert found.request(1, label="dog")(np.arange(1)) == [1]
    with pytest.raises(DataError, match="has the classes ant, cat, dog, and had cat, dog"):
        found.of_split("train")
    with pytest.raises(DataError, match="when this run began, so labels would mean other classes"):
        Conditions.for_training(Labels(classes=3), spec(folder), tmp_path).for_batches("train")


@pytest.mark.parametrize(
    ("label", "names", "expected"),
    [
        ("2", ["1", "2", "10"], 1),
        ("2", ["01", "02", "10"], 1),
        ("02", ["1", "2"], 1),
        ("1", ["cat", "dog"], 1),
        ("1", ["cat", "dog", "1"], 2),
        ("1", [], 1),
        ("9", ["0", "1"], 9),  # a model of more classes than the data have
        ("0007", ["x"], 7),
    ],
)
def test_a_name_goes_before_an_index(label, names, expected):
    assert find_class(label, names, 10) == expected


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        ("0", ["1", "2"], "--label=0: the classes are 1, 2"),
        ("2", ["02", "002"], "--label=2: the classes are 02, 002"),
        ("10", ["a"], "--label=10: there are the classes 0 to 9"),
        ("9" * 5000, [], "there are the classes 0 to 9"),
        ("\u00b2", [], "classes have no names; give a number from 0 to 9"),
        ("dgo", ["cat", "dog"], "the classes are cat, dog; did you mean 'dog'"),
    ],
)
def test_a_label_that_is_no_class_is_refused(label, names, message):
    with pytest.raises(ConfigError, match=message):
        find_class(label, names, 10)
    assert described(1, ["a", "b"]) == "'b' (index 1)"


def test_links_are_followed_into_the_splits(folder, tmp_path):
    moved = tmp_path / "disk"
    (folder / "train").rename(moved)
    (folder / "train").symlink_to(moved)
    opened = spec(folder).open("train")
    assert len(opened) == 12
    assert {pathlib.Path(file).resolve().parent.parent for file in opened.source.files} == {moved}
