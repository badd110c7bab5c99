"""Files with a checksum: damage is noticed, a kill at any moment is not taken for damage."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax import files, sealed
from lsgm_jax.files import replacing, set_aside
from lsgm_jax.sealed import (
    DamagedError,
    append_sealed,
    array_sums,
    read_json,
    read_sealed,
    write_json,
    write_sealed,
)

CONTENT = b"stage,step\nscore,10\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.csv"
    write_sealed(path, CONTENT)
    return path


def test_every_bit_and_every_length_counts(path):
    for position in range(len(CONTENT)):
        for bit in range(8):
            changed = bytearray(CONTENT)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(DamagedError, match=r"a\.csv is damaged"):
                read_sealed(path)
        path.write_bytes(CONTENT[:position])
        with pytest.raises(DamagedError):
            read_sealed(path)
    path.write_bytes(CONTENT + b"\0")
    with pytest.raises(DamagedError):
        read_sealed(path)
    path.write_bytes(CONTENT)
    assert read_sealed(path) == CONTENT


def test_a_damaged_checksum_does_not_pass_for_none(path):
    beside = path.with_name(".a.csv.sha256")
    for text in ("", "\0\0", "abc", f"{'0' * 64} 20\n"):
        beside.write_text(text)
        with pytest.raises(DamagedError):
            read_sealed(path)
    beside.unlink()  # a file of an older version
    assert read_sealed(path) == CONTENT


def test_every_bit_of_the_checksums_counts(path):
    """A larger length of the newest content would make its last row look like a torn one."""
    append_sealed(path, b"score,20\n")
    beside = path.with_name(".a.csv.sha256")
    content = beside.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            beside.write_bytes(changed)
            try:
                found = read_sealed(path)
            except DamagedError:
                continue
            assert found == CONTENT + b"score,20\n"


class Killed(Exception):
    pass


def killing(number, monkeypatch):
    """Lets the process die at its operation of this number on files: at the checksum's or the content's."""
    done = iter(range(100))

    def counted(function):
        def call(*args, **kwargs):
            if next(done) == number:
                raise Killed
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(files.pathlib.Path, "replace", counted(files.pathlib.Path.replace))
    monkeypatch.setattr(files.pathlib.Path, "open", counted(files.pathlib.Path.open))


@pytest.mark.parametrize("write", [write_sealed, append_sealed])
@pytest.mark.parametrize("number", range(10))
def test_a_kill_at_any_moment_leaves_the_old_content_or_the_new_one(path, monkeypatch, write, number):
    new = CONTENT + b"score,20\n" if write is append_sealed else b"another"
    with monkeypatch.context() as patch:
        killing(number, patch)
        try:
            write(path, b"score,20\n" if write is append_sealed else new)
        except Killed:
            pass
        else:
            assert number > 3
    assert read_sealed(path) in (CONTENT, new)
    write_sealed(path, b"next")
    assert read_sealed(path) == b"next"


@pytest.mark.parametrize("torn", range(9))
def test_a_row_that_is_half_written_is_dropped(path, torn):
    """By the next row too."""
    row = b"score,20\n"
    append_sealed(path, row)
    path.write_bytes((CONTENT + row)[: len(CONTENT) + torn])
    assert read_sealed(path) == CONTENT
    append_sealed(path, b"score,30\n")
    assert read_sealed(path) == CONTENT + b"score,30\n"
    assert path.read_bytes() == CONTENT + b"score,30\n"


def test_nothing_is_appended_to_damage(path):
    path.write_bytes(CONTENT.replace(b"10", b"11"))
    with pytest.raises(DamagedError):
        append_sealed(path, b"score,20\n")
    assert b"11" in path.read_bytes()


def test_json_is_read_as_it_was_written(tmp_path):
    content = {"a": [1, 2.5, None], "ä": {"b": 1e-300}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(DamagedError, match="holds a list, not an object"):
        read_json(tmp_path / "b.json")
    (tmp_path / "b.json").write_bytes(b"\xff{")
    with pytest.raises(DamagedError, match=r"b\.json is damaged"):
        read_json(tmp_path / "b.json")


def test_sums_of_arrays_know_each_bit_the_type_and_the_shape():
    tree = {"a": jnp.arange(6.0), "b": [np.int32(3), jnp.zeros((0, 2))]}
    sums = array_sums(tree)
    assert list(sums) == ["['a']", "['b'][0]", "['b'][1]"]
    assert sums == array_sums(jax.tree.map(np.asarray, tree))
    one_bit = np.arange(6.0, dtype=np.float32)
    one_bit.view(np.int32)[5] ^= 1
    for other in (one_bit, np.arange(6.0).reshape(2, 3).astype(np.float32), np.arange(6, dtype=np.int32)):
        assert array_sums({"a": other})["['a']"] != sums["['a']"]


def fail(_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    """Libraries raise errors without a file."""
    path = tmp_path / "samples.npz"
    path.write_text("before")
    with pytest.raises(OSError, match="No space left on device") as caught, replacing(path) as partial:
        fail(partial.write_text("half"))
    assert caught.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["samples.npz"]
    assert path.read_text() == "before"


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a") as partial:
        partial.write_text((tmp_path / "other").read_text())
    assert caught.value.filename == str(tmp_path / "other")


def test_what_a_killed_process_was_writing_is_deleted_after_an_hour(tmp_path):
    old, young = tmp_path / "a.json.7.tmp", tmp_path / "a.json.8.tmp"
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    write_json(tmp_path / "a.json", {})
    assert not old.exists()
    assert young.exists()


def test_damaged_files_are_renamed_to_free_names(tmp_path):
    for content in ("1", "2", "3"):
        (tmp_path / "a").write_text(content)
        set_aside(tmp_path / "a")
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"a.damaged": "1", "a.damaged2": "2", "a.damaged3": "3"}


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(path, monkeypatch):
    real, seals = sealed._seals, iter([2, 1])

    def replaced(where):
        if next(seals, 0):
            write_json(path, {"n": 1})
            write_json(path, {"n": 2})
        return real(where)

    write_json(path, {"n": 0})
    monkeypatch.setattr(sealed, "_seals", replaced)
    assert json.loads(read_sealed(path)) == {"n": 2}
