"""`lsgm data prepare` writes sets that train, names what it cannot read, and leaves no unfinished files."""

import hashlib
import json
import os
import pathlib
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lsgm_jax.cli import main as cli
from lsgm_jax.config.load import load_config
from lsgm_jax.data import prepare as preparing
from lsgm_jax.data.checksums import checksums
from lsgm_jax.data.names import mixed
from lsgm_jax.data.pipeline import split_labels, training_batches, whole_split
from lsgm_jax.data.prepare import Job, prepare
from lsgm_jax.data.sources import FolderSource, open_split
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.errors import DataError, LockedError
from lsgm_jax.locks import locked
from tests.data import published
from tests.data.published import colour, grey, labels, write


@pytest.fixture
def mnist(tmp_path):
    """The job of preparing ten images of MNIST's test split."""
    source = write(tmp_path / "files" / "t10k-images-idx3-ubyte.gz", published.idx(grey(10)))
    write(tmp_path / "files" / "t10k-labels-idx1-ubyte.gz", published.idx(labels(10)))
    return Job(kind="mnist", source=source, data_dir=tmp_path / "data")


@pytest.fixture
def images(tmp_path):
    """The job of preparing 30 JPEG files of different sizes and two classes."""
    rng = np.random.default_rng(0)
    for index in range(30):
        image = rng.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
        write(tmp_path / "files" / "ab"[index % 2] / f"{index}.jpg", published.image_file(image, "JPEG"))
    return Job(kind="folder", source=tmp_path / "files", data_dir=tmp_path / "data", name="images")


def read(job, split, **fields):
    return whole_split(spec_of(job, **fields), split)


def spec_of(job, **fields):
    splits = ("train", "validation", "test")
    defaults = dict(source=job.called, data_dir=str(job.data_dir), splits=splits)
    return DataSpec(**defaults | fields)


def greys(x):
    return np.round((x + 1) * 127.5).astype(np.uint8)


def left(job):
    return list(job.data_dir.rglob("*")) if job.data_dir.exists() else []


def test_a_prepared_set_holds_the_images_in_order(mnist):
    outcome = prepare(mnist)
    assert outcome.record["images"] == {"test": 10}
    x = read(mnist, "test", image_shape=(28, 28, 1))
    np.testing.assert_array_equal(greys(x)[..., 0], grey(10))
    np.testing.assert_array_equal(split_labels(spec_of(mnist, image_shape=(28, 28, 1)), "test"), labels(10))


def test_a_prepared_set_is_a_tfds_data_set_apart_from_those_of_tfds(mnist):
    """TFDS reads it without this package; its own `mnist` has another folder."""
    prepare(mnist)
    builder = tfds.builder_from_directory(mnist.data_dir / "prepared" / "mnist" / "1.0.0")
    first = builder.as_data_source("test")[0]
    np.testing.assert_array_equal(first["image"][..., 0], grey(10)[0])
    assert first["label"] == labels(10)[0]
    own = pathlib.Path(tfds.builder("mnist", data_dir=mnist.data_dir).data_path)
    assert mnist.folder not in [own, *own.parents]
    assert sorted(path.name for path in mnist.data_dir.iterdir()) == ["prepared"]


@pytest.mark.parametrize("channels", [1, 3])
def test_tfds_reads_a_folder_as_grey_or_colour(tmp_path, channels):
    images = grey(20, side=6)[..., None] if channels == 1 else colour(20, side=6)
    for index, image in enumerate(images):
        write(
            tmp_path / "files" / "train" / f"{index:02}.png",
            published.image_file(image if channels == 3 else image[..., 0]),
        )
    job = Job(kind="folder", source=tmp_path / "files", data_dir=tmp_path / "data", name="mine")
    prepare(job)
    records = tfds.builder_from_directory(job.folder).as_data_source("train")
    order = [
        int(pathlib.PurePath(name).stem) for name in mixed(f"train/{index:02}.png" for index in range(20))
    ]
    np.testing.assert_array_equal([record["image"] for record in records], images[order])


def test_missing_splits_are_named(mnist):
    prepare(mnist)
    for expression in ("train", "test[:", "nothing[:5]"):
        with pytest.raises(
            DataError, match=r"'mnist' has the splits test, which .* does not name: set config"
        ):
            open_split("mnist", expression, str(mnist.data_dir))
    assert len(open_split("mnist", "test[2:5]", str(mnist.data_dir))) == 3


def test_a_prepared_folder_equals_the_folder(images, tmp_path):
    """It has the splits, the labels and the bytes of the files in the folder."""
    prepare(images)
    for split in ("train", "validation", "test"):
        folder = FolderSource(images.source, split)
        source = open_split("images", split, str(images.data_dir))
        assert [(r.image, r.label) for r in map(source.__getitem__, range(len(source)))] == [
            (r.image, r.label) for r in map(folder.__getitem__, range(len(folder)))
        ]


def test_size_scales_and_crops(images):
    """Like reading the files with fit="crop"."""
    prepare(images)
    expected = read(images, "train", image_shape=(16, 16, 3), fit="crop")
    small = Job(**vars(images) | dict(name="small", size=16))
    prepare(small)
    np.testing.assert_array_equal(read(small, "train", image_shape=(16, 16, 3)), expected)
    batch = next(training_batches(spec_of(small, image_shape=(16, 16, 3), batch_size=8).open("train"), 0))
    assert batch["x"].shape == (8, 16, 16, 3)


def test_celebahq_of_another_size_needs_the_size(tmp_path):
    for index, image in enumerate(colour(10, side=20)):
        write(tmp_path / "files" / f"{index}.png", published.image_file(image))
    job = Job(kind="celebahq256", source=tmp_path / "files", data_dir=tmp_path / "data")
    with pytest.raises(DataError, match=r"0.png in .* has 20 x 20 pixels, not 256 x 256: give --size=256"):
        prepare(job)
    assert left(job) == []
    assert prepare(Job(**vars(job) | dict(size=256))).record["images"] == {"train": 9, "validation": 1}
    assert read(job, "validation", image_shape=(256, 256, 3)).shape == (1, 256, 256, 3)


# Preparing again


def test_preparing_again_changes_nothing(mnist):
    record = prepare(mnist).record
    before = {path: path.stat().st_mtime_ns for path in left(mnist)}
    again = prepare(mnist)
    assert again.was_there
    assert again.record == record
    assert {path: path.stat().st_mtime_ns for path in left(mnist)} == before


def test_other_files_or_sizes_are_refused(mnist, images, tmp_path):
    prepare(mnist)
    write(mnist.source, published.idx(grey(10, seed=7)))
    with pytest.raises(
        DataError, match=rf"was made from other files: remove it with  rm -r {mnist.folder.parent}"
    ):
        prepare(mnist)
    prepare(images)
    with pytest.raises(DataError, match="was made from size=None: remove it"):
        prepare(Job(**vars(images) | dict(size=16)))
    with pytest.raises(DataError, match="was made from kind=folder: remove it"):
        prepare(Job(**vars(mnist) | dict(name="images")))
    (images.folder / "metadata.json").write_text("{")
    with pytest.raises(
        DataError, match=rf"metadata.json cannot be read: remove it with  rm -r {images.folder.parent}"
    ):
        prepare(images)


def test_checksums_depend_on_contents_alone(tmp_path):
    """Compression does not change them; many files have one checksum, which depends on each of them."""
    content = published.idx(grey(3))
    plain, packed = write(tmp_path / "a", content), write(tmp_path / "a.gz", content)
    assert set(checksums([plain, packed], tmp_path).values()) == {hashlib.sha256(content).hexdigest()}
    files = [write(tmp_path / "many" / str(i), bytes([i])) for i in range(20)]
    ((name, before),) = checksums(files, tmp_path).items()
    assert name == "20 files"
    assert checksums(files[::-1], tmp_path) == {name: before}
    files[3].write_bytes(b"other")
    assert checksums(files, tmp_path) != {name: before}


def test_published_files_are_known(mnist, monkeypatch):
    ours = hashlib.sha256(published.idx(grey(10))).hexdigest()
    monkeypatch.setitem(preparing.KNOWN, ours, "ten images")
    record = prepare(mnist).record
    assert record["published"] == {"t10k-images-idx3-ubyte.gz": "ten images"}
    assert record["sha256"]["t10k-images-idx3-ubyte.gz"] == ours
    assert record == json.loads((mnist.folder / "metadata.json").read_text())


# Failures


def test_of_two_preparations_at_once_the_second_is_refused(mnist):
    """And the first one loses nothing."""
    unfinished = write(mnist.folder.parent / "incomplete.FIRST_1.0.0" / "part", b"half")
    with (
        locked(mnist.folder.parent, "prepared", "wait"),
        pytest.raises(LockedError, match=rf"mnist is being prepared by process {os.getpid()} on .*: wait"),
    ):
        prepare(mnist)
    assert unfinished.read_bytes() == b"half"
    assert prepare(mnist).record["images"] == {"test": 10}


class Died(BaseException):
    """An exception that no code expects."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Died, MemoryError])
def test_nothing_half_written_is_left(mnist, images, monkeypatch, error):
    """Neither of this run nor of an earlier killed one; prepared sets stay."""
    prepare(images)
    before = set(left(images))
    real, made = preparing.encode, []

    def dying(pixels):
        made.append(pixels)
        if len(made) == 7:
            assert set(left(mnist)) > before  # something had been written
            raise error
        return real(pixels)

    monkeypatch.setattr(preparing, "encode", dying)
    write(mnist.folder.parent / "incomplete.KILLED_1.0.0" / "part", b"")
    with pytest.raises(error):
        prepare(mnist)
    assert set(left(mnist)) == before
    monkeypatch.undo()
    assert prepare(mnist).record["images"] == {"test": 10}


def test_a_damaged_image_is_refused_or_skipped(images):
    damaged = [images.source / "a" / f"{index}.jpg" for index in (2, 4)]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"cannot decode a/.*jpg in .*: .*; --skip_bad skips damaged images"):
        prepare(images)
    assert left(images) == []
    record = prepare(Job(**vars(images) | dict(skip_bad=True))).record
    assert sorted(record["skipped"]) == [f"a/{index}.jpg in {images.source}" for index in (2, 4)]
    assert sum(record["images"].values()) == 28


def test_a_label_without_a_class_is_named(mnist):
    """Such as letters in the format of MNIST."""
    write(
        mnist.source.with_name("t10k-labels-idx1-ubyte.gz"), published.idx(np.arange(4, 14, dtype=np.uint8))
    )
    with pytest.raises(
        DataError,
        match=r"t10k-labels-idx1-ubyte.gz in .* has the label 10 at index 6: labels here are integers of 0 to 9",
    ):
        prepare(mnist)
    assert left(mnist) == []


def test_a_set_without_undamaged_images_is_refused(images):
    for path in images.source.rglob("*.jpg"):
        path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"no image for the split 'train' in {images.source} can be read"):
        prepare(Job(**vars(images) | dict(skip_bad=True)))
    assert left(images) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "minst"}, "lsgm data prepare minst: there are mnist, omniglot, cifar10"),
        ({"name": None}, "a folder of images needs a name for configs to find it: give --name=NAME"),
        ({"name": "a/b"}, "--name=a/b: give letters, digits and _"),
        ({"name": "digits"}, "--name=digits: .* not the name of the built-in digits"),
        ({"size": 0}, "--size=0: give a positive number"),
        ({"kind": "mnist", "size": 28}, "--size=28: mnist has images of one size"),
        ({"kind": "celebahq256", "size": 64}, "--size=64: celebahq256 has --size=256"),
    ],
)
def test_invalid_arguments_are_refused(images, fields, message):
    with pytest.raises(DataError, match=message):
        prepare(Job(**vars(images) | fields))


def test_a_folder_that_cannot_be_written_is_named(mnist, tmp_path):
    write(tmp_path / "file", b"")
    with pytest.raises(LockedError, match=rf"cannot write to {tmp_path}/file/"):
        prepare(Job(**vars(mnist) | dict(data_dir=tmp_path / "file")))


# The command


def test_the_command_reports_what_it_did(mnist, capsys):
    command = ["data", "prepare", "mnist", f"--source={mnist.source}", f"--data_dir={mnist.data_dir}"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "mnist: 10 test" in printed
    assert (
        f"wrote {mnist.folder}; train on it with  --config.data.source=mnist --config.data.data_dir={mnist.data_dir}"
        in printed
    )
    assert cli.main(command) == 0
    assert "mnist was prepared before: 10 test" in capsys.readouterr().out
    assert cli.main([*command, "--name=other"]) == 0
    assert cli.main(["data", "prepare", "mnist", f"--source={mnist.source}/no"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error == [f"lsgm: error: --source={mnist.source}/no: there is no such file or folder"]


def test_the_command_lists_skipped_images(images, capsys):
    broken = next(images.source.rglob("*.jpg"))
    broken.write_bytes(b"damaged")
    arguments = [f"--source={images.source}", f"--data_dir={images.data_dir}", "--name=mine", "--size=8"]
    assert cli.main(["data", "prepare", "folder", *arguments, "--skip_bad"]) == 0
    name = broken.relative_to(images.source)
    assert f" 1 damaged images: {name} in {images.source}" in capsys.readouterr().out


def test_an_interrupted_command_says_that_it_starts_again(mnist, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "encode", interrupted)
    assert (
        cli.main(["data", "prepare", "mnist", f"--source={mnist.source}", f"--data_dir={mnist.data_dir}"])
        == 130
    )
    assert "interrupted; the same command starts again" in capsys.readouterr().err
    assert left(mnist) == []


def test_the_error_for_an_unprepared_set_says_how_to_prepare_it(tmp_path):
    for name in ("mnist", "celebahq256"):
        with pytest.raises(
            DataError, match=f"'{name}' is not prepared .*: run  lsgm data prepare {name} --source"
        ):
            open_split(name, "train", str(tmp_path))


def test_the_examples_of_the_howto_run(tmp_path, monkeypatch):
    """The config for a folder, and the example on MNIST, prepared in the default folder."""
    page = (pathlib.Path(__file__).parents[2] / "docs" / "howto" / "data.md").read_text()
    config, example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(config, "data.md", "exec"), names)
    path = write(tmp_path / "folder.py", config.encode())
    assert load_config(str(path), []).data.fit == names["get_config"]().data.fit == "crop"
    monkeypatch.setenv("HOME", str(tmp_path))
    for prefix in ("train", "t10k"):
        write(tmp_path / f"{prefix}-images-idx3-ubyte.gz", published.idx(grey(64)))
        write(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", published.idx(labels(64)))
    assert cli.main(["data", "prepare", "mnist", f"--source={tmp_path}"]) == 0
    exec(compile(example, "data.md", "exec"), names)
    assert names["x"].shape == names["test"].shape == (64, 32, 32, 1)
    np.testing.assert_array_equal(names["labels"], labels(64))
    assert names["captions"] == [f"a photo of a {label}" for label in labels(64)]
    assert names["pieces"].shape == (64, 12)
    assert names["tokenizer"].pieces == 26


def test_a_prepared_set_comes_before_a_folder_of_its_name(mnist, tmp_path, monkeypatch):
    prepare(mnist)
    monkeypatch.chdir(tmp_path)
    Image.new("L", (4, 4)).save(write(tmp_path / "mnist" / "train" / "0.png", b""))
    assert len(open_split("mnist", "test", str(mnist.data_dir))) == 10
    assert len(open_split("./mnist", "train", str(mnist.data_dir))) == 1
    assert len(open_split("mnist", "train", str(tmp_path / "elsewhere"))) == 1


def test_a_full_disk_is_named_although_the_writer_hides_it(tmp_path):
    folder = tmp_path / "x" / "1.0.0"
    folder.parent.mkdir()
    message = (
        'Failed to finalize writing of split "train": write() failed: No space left on device; writing ...'
    )
    with (
        pytest.raises(DataError, match=f"cannot write {folder}: No space left on device$"),
        preparing._all_or_nothing(folder),
    ):
        raise RuntimeError(message)
