"""A config.json that was damaged or edited gives the config it says, or one line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsgm_jax.config.load import load_config, read_config, save_config
from tests.mutate import attempt, mutated
from tests.tiny import ROOT

VALUES = (
    None,
    [],
    {},
    "x",
    -1,
    1e999,
    True,
    10**30,
    [[[1]]],
    {"name": []},
    {"a": 1},
    "1" * 3000,
    "a:b",
    "os:",
)
DEEP = "[" * 500 + "]" * 500


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file without its checksum, as older versions wrote it."""
    path = tmp_path_factory.mktemp("run") / "config.json"
    save_config(path, load_config(f"{ROOT}/configs/digits.py", []))
    (path.parent / f".{path.name}.sha256").unlink()
    return path


@pytest.fixture
def text(saved):
    """The content of the file, which is restored."""
    content = saved.read_bytes()
    yield content
    saved.write_bytes(content)


def read(path, content):
    """Returns what a content was read to, or refused as."""
    path.write_bytes(content)
    outcome = attempt(lambda: read_config(path))
    assert outcome.fault is None, outcome.fault
    return outcome


def test_damaged_bytes_are_refused_in_one_line(saved, text):
    @settings(max_examples=20, derandomize=True, database=None, deadline=None)
    @given(mutated(text))
    def check(content):
        read(saved, content)

    check()


def test_any_value_in_any_place_is_taken_or_refused_in_one_line(saved, text):
    tree = json.loads(text)
    sections = [key for key, content in tree.items() if isinstance(content, dict)]
    places = [(key,) for key in tree] + [(key, field) for key in sections for field in tree[key]]

    @settings(max_examples=40, derandomize=True, database=None, deadline=None)
    @given(st.sampled_from(places), st.sampled_from(VALUES))
    def check(place, value):
        changed = json.loads(text)
        inner = changed if len(place) == 1 else changed[place[0]]
        inner[place[-1]] = value
        read(saved, json.dumps(changed).encode())

    check()


@pytest.mark.parametrize(
    "place", [("model",), ("likelihood", "name"), ("joint_prior", "name"), ("score", "name")]
)
def test_a_name_is_text(saved, text, place):
    changed = json.loads(text)
    inner = changed if len(place) == 1 else changed[place[0]]
    inner[place[-1]] = {"a": 1}
    assert f"config.{'.'.join(place)}=" in read(saved, json.dumps(changed).encode()).line


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"1",
        b'"a"',
        b"\xff",
        DEEP.encode(),
        b"[" * 10**6,
        b'{"a": ' + DEEP.encode() + b"}",
        b"9" * 9999,
    ],
)
def test_other_json_is_refused_by_name(saved, text, content):
    line = read(saved, content).line
    assert line.startswith(f"{saved} is damaged")
    assert line.endswith("run  lsgm train  again with the same config to restore it")
