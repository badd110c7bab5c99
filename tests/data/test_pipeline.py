"""Batches show every image once per epoch, augment training alone, and resume exactly."""

import dataclasses
import pathlib
import shutil

import grain
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from lsgm_jax.data import pipeline
from lsgm_jax.data import spec as data_spec
from lsgm_jax.data.pipeline import padded_batches, split_labels, training_batches, whole_split
from lsgm_jax.data.sources import FolderSource
from lsgm_jax.data.spec import DataSpec, Split
from lsgm_jax.errors import DataError


@pytest.fixture
def spec(data_dir):
    return DataSpec(source="digits", image_shape=(8, 8, 1), levels=17, batch_size=64, data_dir=str(data_dir))


@pytest.fixture
def folder(tmp_path):
    """A function that makes a folder of training images from arrays."""

    def make(images, suffix=".png"):
        shutil.rmtree(tmp_path / "train", ignore_errors=True)
        (tmp_path / "train").mkdir()
        for index, image in enumerate(images):
            path = tmp_path / "train" / f"{index:03}{suffix}"
            np.save(path, image) if suffix == ".npy" else Image.fromarray(image).save(path)
        return str(tmp_path)

    return make


def rows(images):
    """Images as a sorted list of tuples, so that sets with repetitions can be compared."""
    return sorted(map(tuple, images.reshape(len(images), -1).astype(int)))


def test_position_resumes_exactly(spec):
    batches = training_batches(Split(spec, "train"), seed=3)
    for _ in range(30):  # past the first epoch of 22 batches
        next(batches)
    state, expected = batches.get_state(), [next(batches)["x"] for _ in range(3)]
    again = training_batches(Split(spec, "train"), seed=3)
    again.set_state(state)
    np.testing.assert_array_equal(expected, [next(again)["x"] for _ in range(3)])


def test_an_epoch_shows_every_image_once_in_a_new_order(spec):
    images = whole_split(spec, "train")
    size = 479  # 1437 = 3 * 479
    batches = training_batches(Split(DataSpec(**{**vars(spec), "batch_size": size}), "train"), seed=0)
    epochs = [np.concatenate([next(batches)["x"] for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert rows(epoch * 8 + 8) == rows(images * 8 + 8)
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0], images)


def test_padded_batches_have_one_size_and_every_row():
    x = np.arange(10.0)[:, None]
    batches = list(padded_batches(x, 4))
    assert [len(rows) for rows, _ in batches] == [4, 4, 4]
    np.testing.assert_array_equal(np.concatenate([rows[:count] for rows, count in batches]), x)


def test_labels_are_those_of_the_images(spec):
    """The labels come in the order of the images, and are those of scikit-learn."""
    digits = load_digits()
    known = {
        tuple(image.ravel().astype(int)): label
        for image, label in zip(digits.images, digits.target, strict=True)
    }
    labels = split_labels(spec, "validation")
    images = np.round((whole_split(spec, "validation") + 1) * 8).astype(int)
    assert labels.dtype == np.int32
    assert [known[tuple(image.ravel())] for image in images] == labels.tolist()
    np.testing.assert_array_equal(split_labels(spec, "validation", limit=7), labels[:7])


# What is random in training


def noisy(spec, **fields):
    """Applies all random augmentations: binarised and mirrored."""
    fields = dict(levels=2, binarise="dynamic", flip=True, pad=1, image_shape=(10, 10, 1)) | fields
    return dataclasses.replace(spec, **fields)


@pytest.mark.parametrize("in_memory", [True, False])
def test_draws_resume_exactly(spec, monkeypatch, in_memory):
    """Also with prefetching threads, whose pending draws are repeated."""
    if not in_memory:
        monkeypatch.setattr(data_spec, "IN_MEMORY_BYTES", 0)
    train = noisy(spec).open("train")
    assert train.in_memory == in_memory
    batches = training_batches(train, seed=3)
    for _ in range(25):  # past the first epoch of 22 batches
        next(batches)
    state, expected = batches.get_state(), [next(batches)["x"] for _ in range(3)]
    again = training_batches(train, seed=3)
    again.set_state(state)
    np.testing.assert_array_equal(expected, [next(again)["x"] for _ in range(3)])


def test_prefetching_changes_nothing(spec, monkeypatch):
    expected = next(training_batches(noisy(spec).open("train"), seed=1))["x"]
    monkeypatch.setattr(data_spec, "IN_MEMORY_BYTES", 0)
    np.testing.assert_array_equal(next(training_batches(noisy(spec).open("train"), seed=1))["x"], expected)


@pytest.fixture
def as_processes(monkeypatch):
    """A function that makes the iterators of `count` processes, at the position of `state` if given."""

    def make(count, samples, seed, state=None):
        iterators = []
        for index in range(count):
            monkeypatch.setattr("jax.process_index", lambda index=index: index)
            monkeypatch.setattr("jax.process_count", lambda: count)
            iterators.append(training_batches(samples, seed))
            if state is not None:
                iterators[-1].set_state(state)
        return iterators

    return make


@pytest.mark.parametrize("in_memory", [True, False])
def test_processes_together_make_the_batch_of_one(spec, monkeypatch, as_processes, in_memory):
    """Bit for bit, augmentations included; and any number of processes resumes from the same state."""
    if not in_memory:
        monkeypatch.setattr(data_spec, "IN_MEMORY_BYTES", 0)
    train = noisy(spec).open("train")
    assert train.in_memory == in_memory
    (alone,) = as_processes(1, train, 3)
    for _ in range(21):
        next(alone)
    state, expected = alone.get_state(), [next(alone)["x"] for _ in range(3)]  # the second spans two epochs
    for count in (2, 4):
        for iterator, process in zip(as_processes(count, train, 3, state), range(count), strict=True):
            shard = slice(process * 64 // count, (process + 1) * 64 // count)
            np.testing.assert_array_equal(
                [next(iterator)["x"] for _ in range(3)], [x[shard] for x in expected]
            )
    one_of_four = as_processes(4, train, 3)[3]
    for _ in range(21):
        next(one_of_four)
    assert one_of_four.get_state() == state


def test_a_process_reads_only_its_rows(folder, monkeypatch, as_processes):
    monkeypatch.setattr(data_spec, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(pipeline, "READ_AHEAD", 0)
    source, read = folder(np.zeros((8, 8, 8), np.uint8)), []
    train = DataSpec(source=source, image_shape=(8, 8, 1), batch_size=4).open("train")
    image = np.zeros((8, 8, 1), np.uint8)
    monkeypatch.setattr(train, "_read", lambda index: read.append(index) or image)
    order = pipeline._Order(8, 4, 0).batch(0).tolist()
    for iterator in as_processes(2, train, 0):
        next(iterator)
    assert read == order


def test_a_batch_that_processes_cannot_share_is_refused(spec, as_processes):
    with pytest.raises(DataError, match=r"config\.data\.batch_size=64 does not divide over 3 processes"):
        as_processes(3, spec.open("train"), 0)


def test_augmentations_differ_between_epochs_and_seeds(folder):
    """No two binarised images of grey level 1/2 are equal."""
    grey = DataSpec(
        source=folder(np.full((8, 8, 8), 128, np.uint8)), image_shape=(8, 8, 1), levels=2, batch_size=8
    )
    grey = dataclasses.replace(grey, binarise="dynamic")
    train = grey.open("train")
    drawn = []
    for seed in (0, 1):
        batches = training_batches(train, seed)
        drawn += [next(batches)["x"] for _ in range(3)]
    images = np.concatenate(drawn).reshape(-1, 64)
    assert len(images) == 6 * 8
    assert len({image.tobytes() for image in images}) == len(images)
    assert abs(images.mean()) < 5 / np.sqrt(images.size)


def test_whole_splits_are_one_fixed_draw(spec):
    """Repeatable, also with a limit; black stays black, white stays white, and nothing is mirrored."""
    grey = (whole_split(spec, "test") + 1) / 2
    fixed = whole_split(noisy(spec), "test")
    np.testing.assert_array_equal(fixed, whole_split(noisy(spec), "test"))
    np.testing.assert_array_equal(fixed[:50], whole_split(noisy(spec), "test", limit=50))
    inside = fixed[:, 1:-1, 1:-1]
    assert set(np.unique(fixed)) == {-1.0, 1.0}
    assert (inside[grey == 0.0] == -1.0).all()
    assert (inside[grey == 1.0] == 1.0).all()
    between = (grey > 0) & (grey < 1)
    mean, spread = grey[between].sum(), np.sqrt((grey * (1 - grey))[between].sum())
    assert abs((inside[between] == 1.0).sum() - mean) < 5 * spread


@pytest.mark.parametrize("binarise", ["none", "dynamic"])
def test_the_border_is_black(spec, binarise):
    padded = dataclasses.replace(spec, pad=2, image_shape=(12, 12, 1), levels=2, binarise=binarise)
    for x in (next(training_batches(padded.open("train"), 0))["x"], whole_split(padded, "validation")):
        assert x.shape[1:] == padded.shape
        border = np.ones((12, 12), bool)
        border[2:-2, 2:-2] = False
        assert (x[:, border] == -1.0).all()
        assert (x[:, ~border] == 1.0).any()


def test_mirrored_batches_hold_the_same_images(spec):
    plain = training_batches(spec.open("train"), seed=5)
    mirrored = training_batches(dataclasses.replace(spec, flip=True).open("train"), seed=5)
    for a, b in ((next(plain)["x"], next(mirrored)["x"]) for _ in range(3)):
        same, turned = ((b == c).all(axis=(1, 2, 3)) for c in (a, a[:, :, ::-1]))
        assert (same | turned).all()
        assert 0 < (turned & ~same).sum() < len(a)


def test_half_of_the_images_are_mirrored(folder):
    left = np.zeros((64, 4, 4), np.uint8)
    left[:, :, 0] = 255
    spec = DataSpec(source=folder(left), image_shape=(4, 4, 1), batch_size=64, flip=True)
    batches = training_batches(spec.open("train"), seed=0)
    mirrored = sum((next(batches)["x"][:, 0, 3, 0] == 1.0).sum() for _ in range(16))
    assert abs(mirrored - 512) < 5 * np.sqrt(256)


# What images there are


def test_label_maps_keep_their_classes(folder):
    """Also with more than 256 classes, from arrays and from PNG files of 16 bits."""
    maps = np.random.default_rng(0).integers(0, 1000, (9, 4, 6), dtype=np.uint16)
    maps[0, 0, 0] = 999
    for suffix in (".png", ".npy"):
        spec = DataSpec(
            source=folder(maps, suffix), image_shape=(4, 6, 1), levels=1000, kind="classes", batch_size=9
        )
        x = whole_split(spec, "train")
        found = np.round((x[..., 0].astype(np.float64) + 1) / spec.bin_width).astype(int)
        order = [int(path.stem) for path in FolderSource(pathlib.Path(spec.source), "train").files]
        np.testing.assert_array_equal(found, maps[order])


def test_a_class_beyond_the_levels_is_named_with_its_file(folder):
    maps = np.zeros((3, 4, 4), np.uint8)
    maps[1, 2, 2] = 5
    spec = DataSpec(source=folder(maps), image_shape=(4, 4, 1), levels=5, kind="classes")
    with pytest.raises(DataError, match=r"001\.png has the class 5: config.data.levels=5 classes are 0 to 4"):
        spec.open("train")


def test_images_of_another_size_are_named_or_fitted(folder):
    source = folder([np.zeros((8, 9), np.uint8)] * 4)
    spec = DataSpec(source=source, image_shape=(8, 8, 1), batch_size=4)
    with pytest.raises(
        DataError, match=r"000\.png has 8 x 9 pixels, not 8 x 8: set config.data.image_shape, or"
    ):
        training_batches(Split(spec, "train"), 0)
    for fit in ("crop", "resize"):
        assert whole_split(dataclasses.replace(spec, fit=fit), "train").shape == (4, 8, 8, 1)


def test_an_image_damaged_during_training_is_named(folder, monkeypatch):
    """Also by the prefetching threads."""
    monkeypatch.setattr(data_spec, "IN_MEMORY_BYTES", 0)
    source = folder(np.zeros((4, 8, 8), np.uint8))
    train = DataSpec(source=source, image_shape=(8, 8, 1), batch_size=4).open("train")
    broken = train.source.files[2]
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=f"cannot decode {broken}: remove or replace"):
        next(training_batches(train, 0))


def test_a_batch_larger_than_the_data_is_refused(folder):
    spec = DataSpec(source=folder(np.zeros((3, 8, 8), np.uint8)), image_shape=(8, 8, 1), batch_size=4)
    with pytest.raises(DataError, match=r"3 training samples .* at most 3"):
        training_batches(spec.open("train"), 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"levels": 1}, "levels=1: with kind='grey' there are 2 to 256"),
        ({"levels": 300}, "levels=300: with kind='grey' there are 2 to 256"),
        ({"levels": 70_000, "kind": "classes"}, "levels=70000: with kind='classes' there are 2 to 65536"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"pad": 4}, r"pad=4 leaves nothing of image_shape=\(8, 8, 1\)"),
        ({"pad": -1}, "pad=-1"),
        ({"binarise": "fixed"}, "binarise='fixed' is none of none, dynamic"),
        ({"binarise": "dynamic"}, "binarise='dynamic' makes two values of grey levels: set levels to 2"),
        ({"binarise": "dynamic", "levels": 2, "kind": "classes"}, "set levels to 2, kind to 'grey'"),
        ({"fit": "squash"}, "fit='squash' is none of exact, crop, resize"),
        ({"kind": "labels"}, "kind='labels' is none of grey, classes"),
        ({"image_shape": (8, 8, 2)}, "images are grey .1 channel. or colour .3."),
        ({"splits": ("train", "test")}, "give one each for training, validation and test"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DataSpec(**{"source": "digits", "image_shape": (8, 8, 1)} | fields)


@pytest.mark.parametrize(("samples", "size"), [(10, 3), (8, 4), (5, 5)])
def test_batches_come_in_the_order_of_grains_own_shuffle(samples, size):
    """Over several epochs, with batches that span two of them."""
    ours = pipeline._Order(samples, size, 7)
    theirs = grain.MapDataset.range(samples).seed(7).shuffle().repeat().batch(size, drop_remainder=True)
    for number in range(4 * samples // size):
        np.testing.assert_array_equal(ours.batch(number), theirs[number])
