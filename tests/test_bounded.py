"""No file makes us allocate, expand or follow more than the limits; whatever is refused is refused in one line."""

import gzip
import io
import json
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from lsgm_jax.bounded import (
    LIMITS,
    Limits,
    check_ended,
    decoded,
    gunzip,
    parse_json,
    read_all,
    read_exactly,
    read_file,
    read_text,
    shown,
)
from lsgm_jax.errors import ConfigError, DataError
from lsgm_jax.numpy_files import map_npy, read_npy, read_npz

SMALL = Limits(content=10_000, slack=1000, ratio=10, members=3, nesting=4, text=100)


def refused(match, call, *arguments, **options):
    with pytest.raises(DataError, match=match) as found:
        call(*arguments, **options)
    assert "\n" not in str(found.value)


def test_a_stream_gives_up_to_the_limit_and_not_a_byte_more():
    assert read_all(io.BytesIO(b"x" * 9), 9, "f") == b"x" * 9
    refused("f expands to more than 8 bytes", read_all, io.BytesIO(b"x" * 9), 8, "f")
    stream = io.BytesIO(b"abcdef")
    assert bytes(read_exactly(stream, 4, "f", most=4)) == b"abcd"
    refused("f says that it has 5 bytes, and at most 4", read_exactly, stream, 5, "f", most=4)
    refused("f says that it has -1 bytes", read_exactly, stream, -1, "f", most=4)
    refused("f is damaged .* ends before its 3 bytes", read_exactly, stream, 3, "f", most=4)
    check_ended(stream, "f")
    refused("more bytes follow", check_ended, io.BytesIO(b"x"), "f")


def test_a_lying_size_costs_no_memory():
    """A terabyte is announced, and ten bytes are there."""
    tracemalloc.start()
    refused("ends before", read_exactly, io.BytesIO(b"x" * 10), 2**30, "f", most=2**31)
    assert tracemalloc.get_traced_memory()[1] < 2**31  # the address space alone
    tracemalloc.stop()


def test_a_gzip_bomb_stops_at_the_ratio():
    assert gunzip(gzip.compress(bytes(1000)), "f", limits=SMALL) == bytes(1000)
    refused("f expands to more than 1000 bytes", gunzip, gzip.compress(bytes(1001)), "f", limits=SMALL)
    refused("f is damaged or incomplete .*: get it again", gunzip, gzip.compress(b"abc")[:-3], "f")
    refused("f is damaged", gunzip, b"no gzip", "f")
    published = 20  # published sets are at most so well compressed
    assert LIMITS.expanded(2**26) >= published * 2**26


def test_files_are_regular_and_no_larger_than_the_limit(tmp_path):
    path = tmp_path / "f"
    refused(f"cannot read {path}: No such file", read_file, path)
    path.write_bytes(b"abc")
    assert read_file(path, most=3) == b"abc"
    refused("has 3 bytes, and at most 2", read_file, path, most=2)
    os.mkfifo(tmp_path / "pipe")
    refused(
        "is a folder or a device: give a file", read_file, tmp_path / "pipe"
    )  # opening it would wait for ever
    refused("is a folder or a device: give a file", read_file, tmp_path)
    path.write_bytes(b"\xef\xbb\xbf\xc3\xa4")
    assert read_text(path) == "ä"
    path.write_bytes(b"\xff")
    refused(f"{path} is no text in UTF-8 .*: save it as UTF-8", read_text, path)
    with pytest.raises(ConfigError, match="f is no text"):
        decoded(b"\xff", "f", error=ConfigError)


def test_json_is_bounded_and_loses_no_key():
    assert parse_json('{"a": [1, {"b": null}]}', "f") == {"a": [1, {"b": None}]}
    assert parse_json("[[[[]]]]", "f", limits=SMALL) == [[[[]]]]
    refused("f is nested more than 4 deep", parse_json, "[[[[[]]]]]", "f", limits=SMALL)
    refused("f is no JSON", parse_json, "[" * 100_000, "f")
    refused("f is no JSON", parse_json, "1" * 5000, "f")
    refused("f is no JSON .the key 'a' occurs twice", parse_json, '{"a": 1, "b": 2, "a": 3}', "f")
    refused("f says that it has 101 characters", parse_json, "1" * 101, "f", limits=SMALL)
    assert parse_json(json.dumps([0.1, "\n"]), "f") == [0.1, "\n"]


def test_values_in_messages_are_short_and_of_one_line():
    for value in (
        "a\nb" * 1000,
        b"\n" * 1000,
        10**5000,
        [list(range(1000))] * 1000,
        np.zeros((1000, 1000)),
        None,
    ):
        assert len(shown(value)) < 300
        assert "\n" not in shown(value)


# NPY and NPZ

ARRAYS = {
    "c": np.arange(6, dtype=">i4").reshape(2, 3),
    "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.array(3.5),
    "text": np.array(["a", "bc"]),
    "empty": np.zeros((0, 3), np.uint8),
}


def npz(arrays, compressed=True):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def npy(array, **changes):
    """Encodes an array; `changes` replace fields of the header."""
    file = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_are_those_that_numpy_wrote(tmp_path, compressed):
    content = npz(ARRAYS, compressed)
    found = read_npz(io.BytesIO(content), "f")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
        np.save(tmp_path / "a.npy", array)
        np.testing.assert_array_equal(map_npy(tmp_path / "a.npy"), array, strict=True)
    assert read_npz(io.BytesIO(content), "f", names=("c", "other")).keys() == {"c"}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (npy(np.zeros(3), shape=(2**62, 2**62)), "f is damaged .*its header says 4611686018427387904 x"),
        (npy(np.zeros(3), shape=(2,)), "its header says 2 of float64, 16 bytes, where it has 24"),
        (npy(np.zeros(3), shape=(-3,)), "f is no NPY file, or damaged .the shape"),
        (npy(np.zeros(3), shape=(True, 3)), "the shape"),
        (npy(np.zeros(3), descr="|O"), "values of the type 'object'.*save it again without objects"),
        (npy(np.zeros(3), descr="|S0", shape=(10**12,)), "values of the type"),
        (npy(np.zeros(3), descr=[("a", "<f8")]), "values of the type"),
        (npy(np.zeros(3))[:-1], "where it has 23"),
        (npy(np.zeros(3)) + b"x", "where it has 25"),
        (npy(np.zeros(3))[:20], "no NPY file"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{}", "a header of 2147483648 bytes"),
        (b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000, "no NPY file"),
        (b"\x93NUMPY\x09\x00", "version 9"),
        (b"PK", "no NPY file"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, content, match):
    refused(match, read_npy, io.BytesIO(content), len(content), "f")
    path = tmp_path / "f"
    path.write_bytes(content)
    refused(match, map_npy, path)


def test_an_npz_bomb_is_not_expanded():
    bomb = npz({"a": np.zeros(10**6, np.uint8)})
    small = Limits(slack=1000, ratio=10)
    refused("f says that it has 1000128 bytes", read_npz, io.BytesIO(bomb), "f", limits=small)
    refused(
        "4 members, and at most 3", read_npz, io.BytesIO(npz(dict.fromkeys("abcd", 1))), "f", limits=SMALL
    )
    lies = bytearray(npz({"a": np.zeros(1000)}, compressed=False))
    at = lies.index(b"PK\x01\x02") + 20  # the sizes in the central directory
    lies[at : at + 8] = struct.pack("<II", 2**25, 2**25)
    refused("a in f is damaged", read_npz, io.BytesIO(bytes(lies)), "f")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_zip_files_are_refused():
    refused("f is damaged", read_npz, io.BytesIO(b"no zip"), "f")
    content = npz(ARRAYS, compressed=False)
    at = content.index(ARRAYS["c"].tobytes())
    refused("Bad CRC-32", read_npz, io.BytesIO(content[:at] + b"?" + content[at + 1 :]), "f")
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("a.npy", npy(np.zeros(3)))
        archive.writestr("a.npy", npy(np.ones(3)))
    refused("it has 'a' twice", read_npz, twice, "f")
