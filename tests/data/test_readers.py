"""Every published format is read exactly, pixels and labels, and damaged files are named."""

import os
import pickle

import numpy as np
import pytest
import scipy.io
from tensorboardX.crc32c import crc32c as independent_crc32c

from lsgm_jax.data.arrangement import arrange
from lsgm_jax.data.images import Layout, decode
from lsgm_jax.data.prepare import READERS
from lsgm_jax.data.readers.celebahq import read_celebahq256
from lsgm_jax.data.readers.cifar10 import read_cifar10
from lsgm_jax.data.readers.crc32c import crc32c
from lsgm_jax.data.readers.folder import read_folder
from lsgm_jax.data.readers.imagenet import read_imagenet
from lsgm_jax.data.readers.mnist import read_mnist
from lsgm_jax.data.readers.omniglot import read_omniglot
from lsgm_jax.data.readers.tfrecord import count_records
from lsgm_jax.errors import DataError
from tests.data import published
from tests.data.published import colour, grey, labels, write

ANY = Layout(height=None, width=None, channels=None)


def everything(contents, split):
    """Returns images [n, ...] and labels of a split, after a check of their count."""
    examples = list(contents.splits[split].read())
    assert len(examples) == contents.splits[split].count
    images = [decode(e.image, ANY, e.origin) if isinstance(e.image, bytes) else e.image for e in examples]
    return np.stack(images), [example.label for example in examples]


def assert_holds(contents, split, images, numbers=None):
    found, found_numbers = everything(contents, split)
    np.testing.assert_array_equal(found, images.reshape(found.shape))
    assert found_numbers == (len(images) * [None] if numbers is None else list(numbers))


# MNIST


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_has_the_splits_whose_files_exist(tmp_path, suffix):
    for prefix, seed in (("train", 0), ("t10k", 1)):
        write(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", published.idx(grey(12, seed=seed)))
        write(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", published.idx(labels(12, seed=seed)))
    both = read_mnist(tmp_path)
    assert_holds(both, "train", grey(12), labels(12))
    assert_holds(both, "test", grey(12, seed=1), labels(12, seed=1))
    one = read_mnist(tmp_path / f"t10k-images-idx3-ubyte{suffix}")
    assert list(one.splits) == ["test"]
    assert_holds(one, "test", grey(12, seed=1), labels(12, seed=1))
    assert [path.name[:4] for path in one.files] == ["t10k", "t10k"]


def test_mnist_without_labels_and_with_dots(tmp_path):
    """Some mirrors name the files with dots."""
    write(tmp_path / "train-images.idx3-ubyte", published.idx(grey(3)))
    contents = read_mnist(tmp_path)
    assert_holds(contents, "train", grey(3))
    assert not contents.classes


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_truncated_idx_file_is_named(tmp_path, suffix):
    path = write(tmp_path / f"train-images-idx3-ubyte{suffix}", published.idx(grey(5)))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        DataError, match=rf"{path.name} in {tmp_path} is damaged or incomplete.*: get it again"
    ):
        read_mnist(tmp_path)


def test_other_idx_files_are_refused(tmp_path):
    path = write(tmp_path / "train-images-idx3-ubyte", published.idx(grey(5, side=20)))
    with pytest.raises(DataError, match="has images of 20 x 20, not 28 x 28"):
        read_mnist(tmp_path)
    write(path, published.idx(labels(5)))
    with pytest.raises(DataError, match=f"{path.name} in {tmp_path} is no IDX file of images"):
        read_mnist(tmp_path)
    write(path, published.idx(grey(5)))
    write(tmp_path / "train-labels-idx1-ubyte", published.idx(labels(4)))
    with pytest.raises(DataError, match="has 4 'labels' for 5 images"):
        everything(read_mnist(tmp_path), "train")
    write(tmp_path / "t10k-images-idx3-ubyte", published.idx(grey(5)))
    with pytest.raises(DataError, match=r"only some of the splits .* have labels"):
        read_mnist(tmp_path)


# OMNIGLOT


def chardata(train, test):
    """Columns of intensities, each image in column-major order, and the alphabet as a one-hot column."""
    columns = [np.stack([image.T.ravel() for image in part], axis=1) / 255.0 for part in (train, test)]
    hot = [np.eye(50)[:, labels(len(part), 50)] for part in (train, test)]
    return {"data": columns[0], "testdata": columns[1], "target": hot[0], "testtarget": hot[1]}


def test_omniglot_is_upright(tmp_path):
    train, test = grey(9), grey(6, seed=1)
    scipy.io.savemat(tmp_path / "chardata.mat", chardata(train, test))
    for source in (tmp_path, tmp_path / "chardata.mat"):
        contents = read_omniglot(source)
        assert_holds(contents, "train", train, labels(9, 50))
        assert_holds(contents, "test", test, labels(6, 50))
        assert len(contents.classes) == 50


def test_other_matlab_files_are_refused(tmp_path):
    path = tmp_path / "chardata.mat"
    with pytest.raises(DataError, match=f"no {path}: give --source"):
        read_omniglot(tmp_path)
    content = chardata(grey(3), grey(3))
    for change, message in (
        ({"testdata": None}, "has no 'testdata'"),
        ({"data": np.zeros((100, 3))}, r"'data' in .* has \[100, 3\] values, not images of 28 x 28"),
        (
            {"data": 255 * content["data"]},
            "'data' in .* has the intensity [0-9.]+ in image [0-2]: intensities are 0 to 1",
        ),
        ({"target": np.eye(50)[:, :2]}, "has 2 labels for the 3 images of 'data'"),
    ):
        changed = {key: value for key, value in (content | change).items() if value is not None}
        scipy.io.savemat(path, changed)
        with pytest.raises(DataError, match=message):
            read_omniglot(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=f"{path} is damaged or incomplete"):
        read_omniglot(path)


# CIFAR-10

FORMATS = {
    "python2": (
        lambda x, y: published.python2_pickle(published.by_channel(x), y),
        "data_batch_{}",
        "test_batch",
    ),
    "python3": (
        lambda x, y: published.python3_pickle(published.by_channel(x), y),
        "data_batch_{}",
        "test_batch",
    ),
    "binary": (published.cifar_binary, "data_batch_{}.bin", "test_batch.bin"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_cifar_batches_are_concatenated_in_order(tmp_path, form, packed):
    batch, train, test = FORMATS[form]
    members = {train.format(i): batch(colour(4, seed=i), labels(4, seed=i)) for i in range(1, 6)}
    members |= {test: batch(colour(3, seed=9), labels(3, seed=9)), "readme.html": b"more"}
    if packed:
        # In an arbitrary order.
        order = sorted(members, key=hash)
        source = write(tmp_path / "c.tar.gz", published.tar({f"cifar-10/{n}": members[n] for n in order}))
    else:
        source = tmp_path
        for name, content in members.items():
            write(tmp_path / "cifar-10" / name, content)
    contents = read_cifar10(source)
    images = np.concatenate([colour(4, seed=i) for i in range(1, 6)])
    assert_holds(contents, "train", images, np.concatenate([labels(4, seed=i) for i in range(1, 6)]))
    assert_holds(contents, "test", colour(3, seed=9), labels(3, seed=9))


def test_cifar_jpegs_stay_unchanged(tmp_path):
    files = [published.image_file(image, "JPEG") for image in colour(5)]
    write(tmp_path / "train_0.npz", published.cifar_jpegs(files[:3], labels(3)))
    write(tmp_path / "train_1.npz", published.cifar_jpegs(files[3:], labels(2)))
    contents = read_cifar10(tmp_path)
    assert [example.image for example in contents.splits["train"].read()] == files
    assert list(contents.splits) == ["train"]


def test_damaged_batches_are_named(tmp_path):
    batch = published.cifar_binary(colour(2), labels(2))
    for name, content, message in (
        (
            "data_batch_1.bin",
            batch[:-1],
            "data_batch_1.bin in .* is damaged .* 6145 bytes are no multiple of 3073",
        ),
        (
            "data_batch_1",
            published.python3_pickle(colour(2).reshape(2, -1), labels(2))[:900],
            "data_batch_1 in .* is dam",
        ),
        (
            "data_batch_1",
            published.python3_pickle(colour(2, 16).reshape(2, -1), labels(2)),
            "another data set",
        ),
        (
            "data_batch_1",
            published.python3_pickle(colour(2).reshape(2, -1), labels(3)),
            "3 'labels' for 2 images",
        ),
        ("data_batch_1", pickle.dumps([1, 2]), "is no dictionary of arrays"),
        (
            "train_0.npz",
            published.cifar_jpegs([b"a", b"b"], labels(2))[:50],
            "train_0.npz in .* is damaged",
        ),
        (
            "train_0.npz",
            published.npz(data=colour(2)),
            "train_0.npz in .* is no batch of JPEG files, it has no 'jpeg'",
        ),
        ("train_0.npz", published.cifar_jpegs([b"a", b"b"], labels(3)), "has 3 'labels' for 2 images"),
    ):
        path = write(tmp_path / name, content)
        with pytest.raises(DataError, match=message):
            read_cifar10(tmp_path)
        path.unlink()
    with pytest.raises(DataError, match=r"no batches of CIFAR-10 in .*: looked for data_batch_1"):
        read_cifar10(tmp_path)


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    write(tmp_path / "data_batch_1", pickle.dumps({"data": Attack(f"touch {marker}")}))
    with pytest.raises(
        DataError, match=r"data_batch_1 in .* names posix.system, which no data need: refused"
    ):
        read_cifar10(tmp_path)
    assert not marker.exists()


# CelebA-HQ

PEOPLE = colour(10, side=256)


@pytest.mark.parametrize("form", ["files", "npy", "tfrecords", "channels first"])
def test_nine_tenths_of_celebahq_are_for_training(tmp_path, form):
    """Files are in the order of the numbers in their names; TFRecord files are concatenated."""
    source = tmp_path
    if form == "files":
        for index, image in enumerate(PEOPLE):
            write(tmp_path / f"{index + 5}.png", published.image_file(image))
    elif form == "npy":
        source = tmp_path / "celeba.npy"
        np.save(source, PEOPLE)
    else:
        for part in range(2):
            content = published.tfrecords(PEOPLE[5 * part : 5 * part + 5], form == "channels first")
            write(tmp_path / f"r08-{part}.tfrecords", content)
    contents = read_celebahq256(source)
    assert_holds(contents, "train", PEOPLE[:9])
    assert_holds(contents, "validation", PEOPLE[9:])


@pytest.mark.parametrize("form", ["files", "tfrecords"])
def test_folders_of_celebahq_are_its_splits(tmp_path, form):
    for split, part in (("train", PEOPLE[:3]), ("validation", PEOPLE[3:5])):
        if form == "files":
            for index, image in enumerate(part):
                write(tmp_path / split / f"{index}.png", published.image_file(image))
        else:
            write(tmp_path / split / "r08.tfrecords", published.tfrecords(part))
    contents = read_celebahq256(tmp_path)
    assert_holds(contents, "train", PEOPLE[:3])
    assert_holds(contents, "validation", PEOPLE[3:5])


def test_damaged_records_are_named(tmp_path):
    path = write(tmp_path / "r08.tfrecords", published.tfrecords(PEOPLE[:2]))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{path} is damaged or incomplete .it ends within record 1"):
        read_celebahq256(tmp_path)
    path.write_bytes(content[:100_000] + b"?" + content[100_001:])
    with pytest.raises(DataError, match=f"{path} is damaged or incomplete .the checksum of record 0 is off"):
        everything(read_celebahq256(tmp_path), "train")
    path.write_bytes(b"no records at all")
    with pytest.raises(DataError, match=f"{path} is damaged or incomplete .it is no TFRecord file"):
        read_celebahq256(tmp_path)
    path.write_bytes(published.tfrecords(colour(1, side=128)))
    with pytest.raises(
        DataError, match=r"record 0 of r08.tfrecords has 49152 bytes of shape \[128, 128, 3\]"
    ):
        everything(read_celebahq256(tmp_path), "train")


def test_crc32c_agrees_with_another_implementation():
    """At all lengths around the boundaries of rows, and for the published check value."""
    assert crc32c(b"123456789") == 0xE3069283
    message = np.random.default_rng(0).integers(0, 256, 70_000, dtype=np.uint8).tobytes()
    for length in (0, 1, 63, 64, 65, 127, 128, 129, 191, 192, 64 * 5 + 3, 64 * 8, 64 * 1023 + 1, 70_000):
        assert crc32c(message[:length]) == independent_crc32c(message[:length])


def test_records_are_counted_by_their_lengths(tmp_path):
    path = write(tmp_path / "a.tfrecord", published.tfrecords(colour(7, side=4)))
    assert count_records(path) == 7


# ImageNet


@pytest.mark.parametrize("form", ["npz", "pickles", "zips"])
def test_imagenet_batches_are_in_order_and_labels_from_zero(tmp_path, form):
    side, numbers = 8, {i: labels(2, 200, seed=i) for i in (0, 1, 2, 10)}
    batches = {}
    for i, drawn in numbers.items():
        data, counted = published.by_channel(colour(2, side, seed=i)), [int(number) + 1 for number in drawn]
        name = f"train_data_batch_{i}" if i else "val_data"
        if form == "npz":
            batches[name + ".npz"] = published.npz(data=data, labels=counted, mean=np.zeros(3))
        else:
            batches[name] = pickle.dumps({"data": data, "labels": counted, "mean": np.zeros(3)}, protocol=4)
    if form == "zips":
        train = {name: content for name, content in batches.items() if "train" in name}
        write(tmp_path / "Imagenet8_train.zip", published.zipped(train))
        write(tmp_path / "Imagenet8_val.zip", published.zipped({"val_data": batches["val_data"]}))
    else:
        for name, content in batches.items():
            write(tmp_path / name, content)
    contents = read_imagenet(tmp_path, side=side)
    train = (1, 2, 10)
    images = np.concatenate([colour(2, side, seed=i) for i in train])
    assert_holds(contents, "train", images, np.concatenate([numbers[i] for i in train]))
    assert_holds(contents, "validation", colour(2, side, seed=0), numbers[0])


def test_imagenet_of_another_size_or_label_is_refused(tmp_path):
    data = published.by_channel(colour(2, side=8))
    path = write(tmp_path / "val_data.npz", published.npz(data=data, labels=[1, 2]))
    with pytest.raises(DataError, match=r"uint8 \[2, 192\] for 'data', not uint8 \[n, 3072\]"):
        read_imagenet(tmp_path, side=32)
    write(path, published.npz(data=data, labels=[0, 1]))
    with pytest.raises(DataError, match="has the label 0 at index 0: labels here are integers of 1 to 1000"):
        read_imagenet(tmp_path, side=8)
    write(path, published.npz(data=data, labels=[1, 2])[:100])
    with pytest.raises(DataError, match=r"val_data.npz in .* is damaged or incomplete"):
        read_imagenet(tmp_path, side=8)


# Folders and archives of images


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_any_images_are_sorted_into_splits_and_classes(tmp_path, form):
    """In the same way in a folder and an archive, whose single outermost folder is ignored."""
    images = {
        f"{kind}/{i}.png": image for i, image in enumerate(grey(60)) for kind in [("a/x", "a/y", "b")[i % 3]]
    }
    members = {name: published.image_file(image) for name, image in images.items()}
    junk = {"__MACOSX/a/._0.png": b"x", "a/.hidden.png": b"x", "a/notes.txt": b"x"}
    if form == "folder":
        source = tmp_path / "images"
        for name, content in (members | junk).items():
            write(source / name, content)
    else:
        packed = {f"images/{name}": content for name, content in (members | junk).items()}
        pack = published.zipped if form == "zip" else published.tar
        source = write(tmp_path / f"p.{'zip' if form == 'zip' else 'tar.gz'}", pack(packed))
    contents = read_folder(source)
    assert list(contents.classes) == ["a/x", "a/y", "b"]
    seen = {}
    for split in contents.splits:
        found, numbers = everything(contents, split)
        for image, number in zip(found[..., 0], numbers, strict=True):
            name = next(name for name, other in images.items() if np.array_equal(other, image))
            assert name.startswith(contents.classes[number])
            seen[name] = split
    assert seen == {
        name: split for split, names in arrange(images, "images").splits.items() for name in names
    }


def test_folders_of_splits_are_the_splits(tmp_path):
    """All splits share the classes; `val` is the validation split."""
    for split, classes in (("train", "ab"), ("val", "bc")):
        for name in classes:
            write(tmp_path / split / name / "0.png", published.image_file(grey(1)[0]))
    contents = read_folder(tmp_path)
    assert list(contents.splits) == ["train", "validation"]
    assert list(contents.classes) == ["a", "b", "c"]
    assert sorted(everything(contents, "train")[1]) == [0, 1]
    assert sorted(everything(contents, "validation")[1]) == [1, 2]


@pytest.mark.parametrize("kind", READERS)
def test_the_error_for_an_empty_source_says_what_is_expected(tmp_path, kind):
    with pytest.raises(DataError, match=f"^no .*{tmp_path}"):
        READERS[kind](tmp_path)
    if kind != "omniglot":
        with pytest.raises(DataError, match=f"--source={tmp_path}/nothing: there is no such file"):
            READERS[kind](tmp_path / "nothing")


@pytest.mark.parametrize("name", ["images.zip", "images.tar.gz"])
def test_a_truncated_archive_is_named(tmp_path, name):
    members = {f"{i}.png": published.image_file(image) for i, image in enumerate(grey(9))}
    content = (published.zipped if name.endswith("zip") else published.tar)(members)
    path = write(tmp_path / name, content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{path} is damaged or incomplete .*: get it again"):
        read_folder(path)
