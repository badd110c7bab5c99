"""Damaged and hostile files of every format give the right images, or one line that names file, value and remedy."""

import gzip
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings

from lsgm_jax.bounded import LIMITS
from lsgm_jax.cli import main as cli
from lsgm_jax.data.prepare import READERS
from lsgm_jax.data.readers.imagenet import read_imagenet
from lsgm_jax.data.readers.tfrecord import count_records
from lsgm_jax.data.sources import open_split
from tests.data import published
from tests.data.formats import FORMATS, examples, matlab_file, matlab_variable, sealed_record
from tests.data.published import colour, grey, labels, write
from tests.mutate import attempt, mutated

EXAMPLES = int(os.environ.get("MUTATIONS", "20"))  # per format


def refused(read, *words):
    """Checks that a file is refused in one line, within the bounds of `attempt`, that has these words."""
    outcome = attempt(read)
    assert outcome.fault is None, outcome.fault
    assert outcome.line is not None, f"accepted: {outcome.result!r}"
    for word in words:
        assert word in outcome.line, outcome.line


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_refused_in_one_line_or_read_right(tmp_path, name):
    form = FORMATS[name]
    form.write(tmp_path, form.content)
    originals = form.read(tmp_path)

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, deadline=None)
    @given(mutated(form.content))
    def check(content):
        form.write(tmp_path, content)
        outcome = attempt(lambda: form.read(tmp_path))
        assert outcome.fault is None, outcome.fault
        if form.sealed and outcome.line is None:
            assert all(example in originals for example in outcome.result)

    check()


# IDX

IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (2**31, 2**31, 4), (2**30, 28, 28), (3, 28, 28)])
def test_a_header_that_overflows_or_lies_is_refused(tmp_path, suffix, shape):
    """The product of three sizes may be beyond 64 bits, and 0 modulo 2^64."""
    content = struct.pack(">I3I", 0x0803, *shape) + bytes(2 * 28 * 28)
    write(tmp_path / (IMAGES + suffix), content)
    refused(lambda: examples("mnist")(tmp_path), IMAGES, "get it again")


@pytest.fixture(scope="module")
def zeros():
    """Five gibibytes of zeros, compressed to five mebibytes: a gzip file of many members."""
    member = gzip.compress(bytes(2**26))
    return lambda start: gzip.compress(start) + 80 * member


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", ("no IDX file of images",)),
        (struct.pack(">I3I", 0x0803, 5 * 2**30 // 784, 28, 28), ("at most", "get it again")),
        (struct.pack(">I3I", 0x0803, 100, 28, 28), ("more bytes follow", "get it again")),
    ],
)
def test_a_compressed_file_of_zeros_is_not_expanded(tmp_path, zeros, start, words):
    (tmp_path / f"{IMAGES}.gz").write_bytes(zeros(start))
    refused(lambda: examples("mnist")(tmp_path), f"{IMAGES}.gz", *words)


def test_a_sparse_file_of_zeros_is_not_read(tmp_path):
    with (tmp_path / IMAGES).open("wb") as file:
        file.truncate(5 * 2**30)
    refused(lambda: examples("mnist")(tmp_path), IMAGES, "no IDX file of images")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("cifar10", "data_batch_1"),
        ("cifar10", "data_batch_1.bin"),
        ("imagenet8", "val_data"),
        ("omniglot", "chardata.mat"),
        ("celebahq256", "a.tfrecords"),
        ("celebahq256", "a.npy"),
        ("imagenet8", "val_data.npz"),
    ],
)
def test_no_large_file_of_zeros_is_read(tmp_path, kind, name):
    """Of ten gibibytes, which take no place on the disk."""
    with (tmp_path / name).open("wb") as file:
        file.truncate(10 * 2**30)
    refused(lambda: examples(kind, "a.npy" if name == "a.npy" else "")(tmp_path), name)


# MATLAB


def test_variables_are_what_scipy_wrote(tmp_path):
    import scipy.io

    from lsgm_jax.data.readers.matlab import read_matlab

    rng = np.random.default_rng(0)
    wanted = {
        code: (100 * rng.random((3, 4))).astype(code)
        for code in ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
    }
    wanted |= {"x3d": rng.random((2, 3, 4)), "empty": np.zeros((0, 5)), "a_longer_name": np.ones((1, 1))}
    others = {"cells": np.array([[1, "a"]], object), "text": "abc", "structure": {"f8": 1.0}}
    for compressed in (True, False):
        scipy.io.savemat(tmp_path / "a.mat", wanted | others, do_compression=compressed)
        found = read_matlab(tmp_path / "a.mat", list(wanted))
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("order", "<>")
def test_doubles_that_are_stored_in_fewer_bytes_are_doubles(tmp_path, order):
    """As MATLAB writes whole numbers, on machines of either order of bytes."""
    from lsgm_jax.data.readers.matlab import read_matlab

    values = np.arange(6, dtype=f"{order}u2")
    content = matlab_file(
        matlab_variable(b"data", (2, 3), values.tobytes(), kind=4, order=order), order=order
    )
    write(tmp_path / "a.mat", content)
    found = read_matlab(tmp_path / "a.mat", ["data"])["data"]
    np.testing.assert_array_equal(found, np.arange(6.0).reshape(3, 2).T, strict=True)


def nested(levels):
    """Cells within cells, which make scipy's reader overflow its stack."""
    content = matlab_variable(b"", (1, 1), struct.pack("<d", 1.0), kind=9)
    for _ in range(levels):
        content = matlab_variable(b"data", (1, 1), content, kind=None)
    return matlab_file(content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: nested(6_000), ("'data'", "no array of real numbers")),
        (lambda: matlab_file(zeros=2**28), ("expands to more than",)),
        (lambda: matlab_file(struct.pack("<II", 14, 2**32 - 8)), ("ends within a variable",)),
        (lambda: matlab_file(matlab_variable(b"data", (2**31 - 1,) * 3, bytes(8), kind=9)), ("8 bytes for",)),
        (lambda: matlab_file(matlab_variable(b"data", (-1, 784), b"", kind=9)), ("the shape (-1, 784)",)),
        (lambda: matlab_file(), ("has no 'data'",)),
        (lambda: matlab_file(version=0x0200), ("version 7.3 (HDF5)", "save it with -v7")),
        (lambda: b"\x89HDF\r\n\x1a\n" + bytes(500), ("no MATLAB file of version 5", "save it with -v7")),
    ],
)
def test_hostile_matlab_files_are_refused(tmp_path, content, words):
    write(tmp_path / "chardata.mat", content())
    refused(lambda: examples("omniglot")(tmp_path), "chardata.mat", *words)


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("data", np.nan, ("'data'", "the intensity nan in image 2")),
        ("testdata", np.inf, ("'testdata'", "the intensity inf in image 2")),
        ("data", -1e-3, ("the intensity -0.001 in image 2",)),
        ("target", np.nan, ("'target'", "marks no one alphabet in column 2")),
        ("testtarget", 1.0, ("'testtarget'", "marks no one alphabet in column 2")),
    ],
)
def test_intensities_and_alphabets_are_checked(tmp_path, key, change, words):
    import scipy.io

    hot = np.eye(5)[:, [1, 2, 3]]
    content = {
        "data": np.zeros((784, 3)),
        "testdata": np.zeros((784, 3)),
        "target": hot,
        "testtarget": hot.copy(),
    }
    scipy.io.savemat(tmp_path / "chardata.mat", content)
    examples("omniglot")(tmp_path)
    content[key] = content[key].copy()
    content[key][0, 2] = change
    scipy.io.savemat(tmp_path / "chardata.mat", content)
    refused(lambda: examples("omniglot")(tmp_path), "chardata.mat", *words)


# CIFAR and ImageNet


BAD_LABELS = {
    "three axes": (np.zeros((2, 1, 1), np.int64), ("'labels' of shape [2, 1, 1], not [2]",)),
    "no axes": (np.array(3), ("'labels' of shape [], not [2]",)),
    "NaN": (np.array([1.0, np.nan]), ("the label nan at index 1",)),
    "infinite": (np.array([1.0, np.inf]), ("the label inf at index 1",)),
    "fractions": ([1, 2.5], ("the label 2.5 at index 1",)),
    "text": (["1", "cat"], ("the label '1' at index 0",)),
    "array of text": (np.array(["1", "2"]), ("the label '1' at index 0",)),
    "one text": ("12", ("str for 'labels'",)),
    "bytes": (b"12", ("bytes for 'labels'",)),
    "negative": ([1, -1], ("the label -1 at index 1",)),
    "too large": ([1, 2**70], ("the label 1180591620717411303424 at index 1",)),
    "truth": ([True, False], ("the label True at index 0",)),
    "nothing": ([1, None], ("the label None at index 1",)),
    "lists": ([1, [2]], ("the label [2] at index 1",)),
    "too few": ([1], ("1 'labels' for 2 images",)),
    "none": (None, ("NoneType for 'labels'",)),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
@pytest.mark.parametrize("side", [32, 8])
def test_labels_are_one_class_for_each_image(tmp_path, kind, side):
    values, words = BAD_LABELS[kind]
    name = "data_batch_1" if side == 32 else "val_data"
    content = {"data": published.by_channel(colour(2, side)), "labels": values}
    write(tmp_path / name, pickle.dumps(content, protocol=2))
    read = examples("cifar10" if side == 32 else "imagenet8")
    text = isinstance(values, np.ndarray) and values.dtype.kind == "U"  # the unpickler refuses it before
    refused(lambda: read(tmp_path), name, *(() if text else words))
    if isinstance(values, np.ndarray):
        (tmp_path / name).unlink()
        content = {"offsets": np.array([0, 1, 2]), "jpeg": np.zeros(2, np.uint8)} | content
        name = "train_0.npz" if side == 32 else "val_data.npz"
        write(tmp_path / name, published.npz(**content))
        refused(lambda: read(tmp_path), name, *words)


def test_control_characters_of_a_pickle_are_escaped(tmp_path):
    content = published.python2_pickle(published.by_channel(colour(2)), labels(2)).replace(b"u1K", b"\x1b1K")
    write(tmp_path / "data_batch_1", content)
    refused(lambda: examples("cifar10")(tmp_path), "data_batch_1", r"\x1b1")


def test_whole_numbers_of_any_type_are_labels(tmp_path):
    for values in ([1, 2], np.array([1, 2], ">i2"), np.array([1.0, 2.0]), (np.int8(1), 2)):
        content = {"data": published.by_channel(colour(2)), "labels": values}
        write(tmp_path / "data_batch_1", pickle.dumps(content, protocol=2))
        assert [label for _, label in examples("cifar10")(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "content", [{"labels": [1, 2]}, {"data": None, "labels": [1, 2]}, {"data": np.array(3)}]
)
@pytest.mark.parametrize("name", ["val_data", "val_data.npz"])
def test_batches_without_images_are_refused(tmp_path, content, name):
    if name.endswith(".npz"):
        content = {key: value for key, value in content.items() if value is not None}
    write(tmp_path / name, published.npz(**content) if name.endswith(".npz") else pickle.dumps(content))
    refused(lambda: read_imagenet(tmp_path, side=8), name, "for 'data', not uint8 [n, 192]")


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        (np.array(4), ("int64 [] for 'offsets'",)),
        (np.zeros((2, 2), int), ("int64 [2, 2] for 'offsets'",)),
        (np.array([0.0, 1.0, 4.0]), ("float64 [3] for 'offsets'",)),
        (np.array([], int), ("int64 [0] for 'offsets'",)),
        (np.array([1, 2, 4]), ("the offset 1 at index 0", "4 bytes")),
        (np.array([0, 9, 4]), ("the offset 9 at index 1",)),
        (np.array([0, -2, 4]), ("the offset -2 at index 1",)),
        (np.array([0, 3, 2, 4]), ("the offset 2 at index 2",)),
        (np.array([0, 2, 3]), ("the offset 3 at index 2",)),
        (np.array([0, 2**63, 4], np.uint64), ("the offset 9223372036854775808 at index 1",)),
    ],
)
def test_offsets_describe_the_bytes(tmp_path, offsets, words):
    write(tmp_path / "train_0.npz", published.npz(jpeg=np.zeros(4, np.uint8), offsets=offsets, labels=[1, 2]))
    refused(lambda: examples("cifar10")(tmp_path), "train_0.npz", *words)


def bomb(name, header):
    """An NPZ file of eight gibibytes of zeros, in eight mebibytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(f"{name}.npy", header + bytes(2**27))
    content = bytearray(file.getvalue())
    at = content.index(b"PK\x01\x02")
    return bytes(content), at


@pytest.mark.parametrize("declared", [2**27, 2**32 - 2])
def test_an_npz_that_expands_is_refused(tmp_path, declared):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (2**32 - 130,)}
    )
    content, at = bomb("data", header.getvalue())
    content = content[: at + 24] + struct.pack("<I", declared) + content[at + 28 :]
    write(tmp_path / "val_data.npz", content)
    refused(lambda: read_imagenet(tmp_path, side=8), "val_data.npz")


def test_objects_in_arrays_are_refused(tmp_path):
    content = {"data": published.by_channel(colour(2, 8)), "labels": np.array([1, None], object)}
    write(tmp_path / "val_data.npz", published.npz(**content))
    refused(lambda: read_imagenet(tmp_path, side=8), "labels in val_data.npz", "without objects")


# TFRecord


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**63 - 1, 2**40, 1000])
def test_lengths_beyond_the_file_are_refused(tmp_path, length):
    """Their own checksum is right."""
    packed = struct.pack("<Q", length)
    path = write(
        tmp_path / "a.tfrecords", sealed_record(b"x") + packed + published.masked(packed) + bytes(100)
    )
    refused(
        lambda: count_records(path), str(path), f"it ends within record 1, which should have {length} bytes"
    )
    refused(lambda: examples("celebahq256")(tmp_path), str(path))


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\xff\xff", ("no tf.train.Example",)), (b"", ("features", "not 'data' and 'shape'"))],
)
def test_records_of_something_else_are_named(tmp_path, data, words):
    write(tmp_path / "a.tfrecords", 10 * sealed_record(data))
    refused(lambda: examples("celebahq256")(tmp_path), "record 0 of a.tfrecords", *words)


# Captions


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[" * 100_000, ("line 1 of metadata.jsonl", "no JSON")),
        (b'{"file_name": "a.png", "text": "\\ud800"}', ('needs a name as "file_name"',)),
        (b'{"file_name": "a.png", "text": "x", "text": "y"}', ("the key 'text' occurs twice",)),
        (b'{"file_name": "a.png", "text": ' + b"9" * 5000 + b"}", ("no JSON",)),
        (b'{"file_name": "a.png", "text": {"en": "x"}}', ('"text" a text or a list',)),
        (b"\xff", ("no text in UTF-8",)),
    ],
)
def test_lists_of_captions_are_checked(tmp_path, line, words):
    form = FORMATS["metadata"]
    form.write(tmp_path, line)
    refused(lambda: form.read(tmp_path), *words)


def test_all_lines_of_an_image_count(tmp_path):
    form = FORMATS["metadata"]
    form.write(tmp_path, b'{"file_name": "a.png", "text": "one"}\n{"file_name": "a.png", "text": ["two"]}')
    assert form.read(tmp_path)[0] == ("one", "two")


def test_a_vocabulary_is_bounded(tmp_path):
    form = FORMATS["vocabulary"]
    form.write(tmp_path, form.content + b"\n" + b"x" * (LIMITS.key + 1))
    refused(lambda: form.read(tmp_path), "vocab.txt has a line of 4097 characters")
    with (tmp_path / "vocab.txt").open("wb") as file:
        file.truncate(2 * LIMITS.text)
    refused(lambda: form.read(tmp_path), "vocab.txt", f"at most {LIMITS.text}")


# Prepared sets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The data directory of a prepared set of three images."""
    root = tmp_path_factory.mktemp("prepared")
    write(root / "files" / "t10k-images-idx3-ubyte", published.idx(grey(3)))
    write(root / "files" / "t10k-labels-idx1-ubyte", published.idx(labels(3)))
    assert cli.main(["data", "prepare", "mnist", f"--source={root}/files", f"--data_dir={root}"]) == 0
    return root


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("*array_record*", lambda content: content[:-65536], ()),
        (
            "*array_record*",
            lambda content: content.replace(b"IHDR", b"iHDR"),
            ("cannot be read", "prepare it again"),
        ),
        ("dataset_info.json", lambda content: content[:-9], ("description cannot be read", "rm -r")),
        (
            "dataset_info.json",
            lambda content: content.replace(b'"3"', b'"2"'),
            ("{'test': 2} images where {'test': 3} were written",),
        ),
        ("features.json", lambda content: b"\xff" + content, ("description cannot be read", "rm -r")),
        ("metadata.json", lambda content: b"[]", ("description cannot be read", "rm -r")),
        ("metadata.json", lambda content: b"[" * 100_000, ("description cannot be read", "rm -r")),
    ],
)
def test_a_damaged_set_is_named(prepared, name, change, words):
    (path,) = (prepared / "prepared" / "mnist" / "1.0.0").glob(name)
    before = path.read_bytes()
    assert change(before) != before

    def read():
        source = open_split("mnist", "test", str(prepared))
        return [source[index] for index in range(len(source))]

    read()
    try:
        path.write_bytes(change(before))
        refused(read, "mnist", *words)
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("kind", ["mnist", "omniglot", "cifar10", "imagenet32"])
def test_the_command_says_one_line_and_leaves_nothing(tmp_path, capsys, kind):
    names = {
        "mnist": f"{IMAGES}.gz",
        "omniglot": "chardata.mat",
        "cifar10": "data_batch_1",
        "imagenet32": "val_data.npz",
    }
    write(tmp_path / "files" / names[kind], b"\x80\x04PK damaged")
    assert kind in READERS
    assert (
        cli.main(["data", "prepare", kind, f"--source={tmp_path}/files", f"--data_dir={tmp_path}/data"]) == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("lsgm: error: ")
    assert names[kind] in error
    assert not (tmp_path / "data").exists()
