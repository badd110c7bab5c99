"""Checkpoints of every layout: what is in them comes back, and damaged or hostile ones end in one line."""

import json
import pathlib
import pickle
import struct
import tempfile
import zipfile

import hypothesis
import numpy as np
import pytest

from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.checkpoint_file import read_checkpoint
from lsgm_jax.interop.restricted import DTYPES
from tests.interop.write_safetensors import encoded, entries, safetensors
from tests.interop.write_torch import Call, Global, Storage, write_legacy, write_zip
from tests.mutate import attempt, mutated
from tests.unpickling import programs

TREE = {"a": np.arange(6.0).reshape(2, 3), "b": [np.arange(4, dtype=np.float32)[::2]], "epoch": 3}
TENSORS = {
    "a": np.arange(6.0).reshape(2, 3),
    "b.weight": np.array(2.5, np.float32),
    "c": np.zeros((0, 3), np.int64),
}


def written(write):
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder) / "file", TREE)
        return (pathlib.Path(folder) / "file").read_bytes()


# The valid files that are damaged below.
VALID = {
    "safetensors": safetensors(TENSORS, __metadata__={"format": "pt"}),
    "zip": written(write_zip),
    "legacy": written(write_legacy),
}


def refusal(path):
    with pytest.raises(ConversionError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message


def assert_tensors_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_safetensors_are_read_whatever_their_name(tmp_path, name):
    """Read-only; metadata is no tensor."""
    every = {
        dtype: np.arange(-2, 4).reshape(3, 2).astype(DTYPES[dtype])
        for dtype in DTYPES
        if dtype != "complex128"
    }
    (tmp_path / name).write_bytes(safetensors(TENSORS | every, __metadata__={"format": "pt"}))
    found = read_checkpoint(tmp_path / name)
    assert_tensors_equal(found, TENSORS | every)
    assert not any(tensor.flags.writeable for tensor in found.values())


def test_a_header_that_begins_like_a_pickle_is_one_of_safetensors(tmp_path):
    """The first byte of a pickle is 0x80, and so is that of a length of 384."""
    text = json.dumps(entries(TENSORS)).encode()
    content = encoded(text.ljust(384), b"".join(tensor.tobytes() for tensor in TENSORS.values()))
    assert content[:1] == b"\x80"
    (tmp_path / "a").write_bytes(content)
    assert_tensors_equal(read_checkpoint(tmp_path / "a"), TENSORS)


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry("F8_E4M3", (8,))}, "tensor a has the dtype F8_E4M3, not one of BOOL"),
        ({"a": entry([["F32"]])}, "has the dtype"),
        ({"a": entry(shape=(3,))}, r"has 8 bytes for \[3\] float32"),
        ({"a": entry(shape=(-2,))}, "has no shape"),
        ({"a": entry(shape=(2.0,))}, "has no shape"),
        ({"a": entry(shape=(True, 2))}, "has no shape"),
        ({"a": entry(shape=[1] * 33)}, "has no shape"),
        ({"a": entry(shape=(2**62, 2**62))}, "has 8 bytes for"),
        ({"a": entry(offsets=(0, 4), shape=(1,))}, "has 8 bytes of tensors where its header says 4"),
        ({"a": entry(offsets=(0, 16), shape=(4,))}, "has 8 bytes of tensors where its header says 16"),
        ({"a": entry(offsets=(4, 8), shape=(1,))}, "starts at byte 4, not 0"),
        ({"a": entry(), "b": entry()}, "starts at byte 0, not 8"),
        ({"a": entry(offsets=(8, 0))}, "ends before it starts"),
        ({"a": entry(offsets=(-8, 0))}, "ends before it starts"),
        ({"a": entry(offsets=(0, 2**70))}, "header says"),
        ({"a": {"dtype": "F32"}}, "KeyError: 'data_offsets'"),
        ({"a": 3}, "TypeError"),
        ([1, 2], "damaged, or no checkpoint|neither"),
        (b'{"a": 1, "a": 2}', "two tensors of one name"),
        (b"{" + b'"a":[' * 100_000, "RecursionError|JSONDecodeError"),
        (b'{"a\\n\\u001b[2J": 3}', "TypeError"),
        (b'{"\xff": 3}', "UnicodeDecodeError"),
    ],
)
def test_a_header_that_does_not_describe_its_bytes_is_refused(tmp_path, header, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(encoded(header, np.ones(2, np.float32).tobytes()))
    with pytest.raises(ConversionError, match=message):
        read_checkpoint(path)
    refusal(path)


@pytest.mark.parametrize("length", [2**23 + 1, 2**40, 2**63, 2**64 - 1])
def test_the_length_of_a_header_is_bounded(tmp_path, length):
    (tmp_path / "a").write_bytes(struct.pack("<Q", length) + b"{}" + b" " * 100)
    assert f"has a header of {length} bytes" in refusal(tmp_path / "a")


@pytest.mark.parametrize("layout", VALID)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, layout):
    """Where it is read, every tensor may be computed with."""
    path = tmp_path_factory.mktemp("damaged") / "file"

    @hypothesis.given(mutated(VALID[layout]))
    @hypothesis.settings(deadline=None, max_examples=150, database=None)
    def check(content):
        path.unlink(missing_ok=True)  # the arrays of the last example may be views of the old file
        path.write_bytes(content)
        assert attempt(lambda: repr(read_checkpoint(path))).fault is None

    check()


def test_a_zip_is_what_was_saved(tmp_path):
    """A flipped bit in a storage, in the pickle, or in a name is found by the checksum."""
    write_zip(tmp_path / "a.pt", {"w": np.arange(100.0)})
    content = (tmp_path / "a.pt").read_bytes()
    for part in (np.float64(7.0).tobytes(), b"DoubleStorage", b"cuda:0"):
        at = content.index(part)
        (tmp_path / "b.pt").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert "is not what was saved (BadZipFile: Bad CRC-32" in refusal(tmp_path / "b.pt")


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """A directory of many entries at one place would be read as often; each is of the size of the file."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", b"1" * 1000)
        for key in range(1, 50):
            archive.filelist.append(zipfile.ZipInfo(f"archive/data/{key}"))
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(archive.filelist[-1], field, getattr(archive.getinfo("archive/data/0"), field))
    refusal(tmp_path / "a.pt")


def legacy(path, keys, *, pids=("0",), numel=3):
    """Writes a file whose tensors and list of storages may differ."""
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    storages = [
        Storage(("storage", Global("torch", "DoubleStorage"), key, "cpu", numel, None)) for key in pids
    ]
    write_legacy(path, [Call(rebuild, storage, 0, (numel,), (1,)) for storage in storages])
    end = pickle.dumps([], protocol=2)
    content = path.read_bytes().removesuffix(end) + pickle.dumps(keys, protocol=2)
    path.write_bytes(content + b"".join(struct.pack("<q3d", 3, 1, 2, 3) for _ in keys))


def test_no_memory_is_handed_out_that_the_file_does_not_fill(tmp_path):
    path = tmp_path / "a.pt"
    legacy(path, ["0"])
    np.testing.assert_array_equal(read_checkpoint(path)[0], [1.0, 2.0, 3.0])
    for keys in ([], ["1"], ["0", "0"], ["0", "1"], [0], [["0"]], {"0": 1}):
        legacy(path, keys)
        assert "its list of storages is not that of its tensors" in refusal(path) or "TypeError" in refusal(
            path
        )
    legacy(path, ["0"], numel=4)
    assert "3 values where its pickle says 4" in refusal(path)
    legacy(path, ["0"], numel=2**40)
    assert "ends within storage 0" in refusal(path)
    legacy(path, [str(key) for key in range(9)], pids=[str(key) for key in range(9)], numel=30)
    assert "ends within storage" in refusal(path)


LAUGHS = programs.laughs()
KIND = programs.name("torch", "DoubleStorage")


@pytest.mark.parametrize("place", range(5))
def test_an_id_of_a_storage_follows_no_large_tree(tmp_path, place):
    parts = [programs.text("storage"), KIND, programs.text("0"), programs.text("cpu"), programs.whole(3)]
    parts[place] = LAUGHS
    program = programs.program(programs.tuple_of(*parts), pickle.BINPERSID)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", np.arange(3.0).tobytes())
    assert attempt(lambda: refusal(tmp_path / "a.pt")).fault is None


def test_a_tensor_repeats_its_storage_within_bounds(tmp_path):
    """As `expand` makes them; but not gigabytes of one number."""
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    storage = Storage(("storage", Global("torch", "DoubleStorage"), "0", "cpu", 3))
    write_zip(tmp_path / "a.pt", [np.arange(3.0), Call(rebuild, storage, 1, (5, 2), (0, 1))])
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "a.pt")[1], [[1.0, 2.0]] * 5)
    write_zip(tmp_path / "a.pt", [np.arange(3.0), Call(rebuild, storage, 1, (2**20 + 1,), (0,))])
    assert "repeats the 3 values of its storage: save a clone of it" in refusal(tmp_path / "a.pt")
