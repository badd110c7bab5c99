"""Pickles of data are read exactly; any other program ends in one line, in bounded time and memory."""

import collections
import io
import pickle
import pickletools
import re
import struct
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lsgm_jax.interop.restricted import NAMES
from lsgm_jax.unpickling.machine import OPCODES, Function, load
from lsgm_jax.unpickling.numpy_names import NUMPY_NAMES
from tests.mutate import attempt, mutated
from tests.tiny import ROOT
from tests.unpickling import programs
from tests.unpickling.programs import (
    array,
    call,
    dict_of,
    dtype,
    dtype_state,
    program,
    raw,
    text,
    tuple_of,
    whole,
)

KEYS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False), st.text(), st.binary()
)
LEAVES = st.one_of(KEYS, st.integers(-(2**500), 2**500))
DTYPES = [
    "?",
    "i1",
    "<i2",
    ">i4",
    "i8",
    "u1",
    "u2",
    "<u4",
    ">u8",
    "f2",
    "<f4",
    ">f8",
    "c8",
    "c16",
    "S3",
    "<U2",
    ">U5",
]
TREES = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.lists(parts, max_size=4),
        st.lists(parts, max_size=4).map(tuple),
        st.dictionaries(KEYS, parts, max_size=4),
        st.dictionaries(KEYS, parts, max_size=4).map(collections.OrderedDict),
    ),
    max_leaves=20,
)


def read(content, names=NUMPY_NAMES):
    return load(io.BytesIO(content), names)


def line(content, names=NUMPY_NAMES):
    """The line of a refusal, None for a value, which may be printed; either comes at once."""

    def attempted():
        try:
            repr(read(content, names))
        except pickle.UnpicklingError as error:
            return str(error)

    outcome = attempt(attempted)
    assert outcome.fault is None
    found = outcome.line or outcome.result
    assert found is None or found.isprintable()
    return found


def refusal(content, names=NUMPY_NAMES):
    found = line(content, names)
    assert found is not None
    return found


@hypothesis.given(TREES, st.integers(0, 5))
@hypothesis.settings(deadline=None, max_examples=150)
def test_data_come_back(tree, protocol):
    assert read(pickle.dumps(tree, protocol), NAMES) == tree


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("code", DTYPES)
def test_arrays_come_back(code, protocol):
    """In every protocol, dtype, order of axes and of bytes; numbers of numpy, too; and each object once."""
    values = np.arange(-3, 9).reshape(2, 3, 2).astype(code)
    tree = [values, values.T, values[:0], np.asfortranarray(values), values[0, 0, 0], values]
    found = read(pickle.dumps(tree, protocol))
    for one, other in zip(found, tree, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert found[-1] is found[0]


def test_strings_of_python_2_are_latin_1():
    assert read(pickle.PROTO + b"\x02" + pickle.SHORT_BINSTRING + b"\x02\xe9a.") == "éa"
    assert read(b"S'\\xe9a'\n.") == "éa"


def test_the_file_is_left_behind_the_pickle():
    file = io.BytesIO(b"".join(pickle.dumps(value) for value in (1, [2], "three")) + b"rest")
    assert [load(file, {}) for _ in range(3)] == [1, [2], "three"]
    assert file.read() == b"rest"


LAUGHS = programs.laughs()
BAD_KEYS = {
    "billion laughs": LAUGHS,
    "deep": programs.nested(10**4),
    "list": b"]",
    "long": text("x" * 1001),
    "many bits": whole(2**61 * (2**61 - 1)),
    "array": array(tuple_of(), dtype("u1"), raw(b"1")),
}


@pytest.mark.parametrize("key", BAD_KEYS)
@pytest.mark.parametrize("way", ["set item", "set items", "dict"])
def test_only_small_keys_are_hashed(key, way):
    key = BAD_KEYS[key]
    ways = {
        "set item": pickle.EMPTY_DICT + key + b"N" + pickle.SETITEM,
        "set items": dict_of(key, b"N"),
        "dict": pickle.MARK + key + b"N" + pickle.DICT,
    }
    assert "a key that is a" in refusal(program(ways[way]))


def test_a_tree_is_bounded_however_its_parts_are_shared():
    """In values, keys of state, and in containers that hold themselves or are nested by the memo."""
    assert "repeats containers to more than" in refusal(program(LAUGHS))
    assert "repeats containers" in refusal(program(dict_of(text("labels"), LAUGHS)))
    assert "nests containers more than 64 deep" in refusal(program(programs.nested(10**4)))
    assert "contains itself" in refusal(program(b"]", pickle.DUP, pickle.APPEND))
    itself = (b"}", pickle.BINPUT + b"\0", text("k"), pickle.BINGET + b"\0", pickle.SETITEM)
    assert "contains itself" in refusal(program(*itself))


def test_depth_counts_for_parts_that_were_met_before():
    """Each list holds the one before it; the outer list has them all, the shallow ones first."""
    get, put = (lambda k: pickle.BINGET + bytes([k])), (lambda k: pickle.BINPUT + bytes([k]))
    chain = b"".join(b"]" + get(k - 1) + pickle.APPEND + put(k) for k in range(1, 99))
    assert "more than 64 deep" in refusal(program(pickle.MARK, b"]", put(0), chain, pickle.LIST))


OPERANDS = {
    "bytes of 2^60": pickle.BINBYTES8 + struct.pack("<Q", 2**60),
    "bytearray of 2^60": pickle.BYTEARRAY8 + struct.pack("<Q", 2**60),
    "text of 2^31": pickle.BINUNICODE + struct.pack("<I", 2**31),
    "number of 2^31 bytes": pickle.LONG4 + struct.pack("<i", 2**31 - 1),
    "number of -1 bytes": pickle.LONG4 + struct.pack("<i", -1),
    "number of 2^20 digits": pickle.INT + b"9" * 2**20 + b"\n",
    "number of 2^20 bytes": pickle.LONG4 + struct.pack("<i", 2**20) + b"\x7f" * 2**20,
    "text without end": pickle.UNICODE + b"a" * 2**20,
    "memo that is empty": pickle.LONG_BINGET + struct.pack("<I", 2**32 - 1),
    "stack that is empty": pickle.TUPLE3,
    "mark that is none": pickle.TUPLE,
    "extension": pickle.EXT1 + b"\1",
    "buffer": pickle.NEXT_BUFFER,
    "object elsewhere": b"N" + pickle.BINPERSID,
    "nothing": b"",
}


@pytest.mark.parametrize("operand", OPERANDS)
def test_an_operand_reserves_no_memory(operand):
    refusal(program(OPERANDS[operand]))


def test_sizes_that_nothing_needs_are_ignored():
    frame = pickle.FRAME + struct.pack("<Q", 2**60)
    assert line(program(frame, b"N", pickle.LONG_BINPUT + struct.pack("<I", 2**32 - 1))) is None


FUNCTIONS = {".".join(name): name for name, value in NAMES.items() if isinstance(value, Function)}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_function_follows_a_large_tree(function):
    """Neither a hash nor a text of it is made, in whatever argument it comes, nor in the state of the result."""
    called = programs.name(*FUNCTIONS[function])
    for arguments in (
        [LAUGHS],
        [LAUGHS] * 3,
        [text("f4"), LAUGHS, LAUGHS],
        [LAUGHS, text("latin1")],
        [LAUGHS] * 5,
    ):
        refusal(program(call(called, *arguments), LAUGHS, pickle.TUPLE2), NAMES)
        refusal(program(call(called, *arguments), LAUGHS, pickle.BUILD, LAUGHS, pickle.TUPLE2), NAMES)


def test_a_name_that_is_not_known_is_shown_on_one_line():
    long = text("a\n\x1b[2J" + "b" * 10**6) + text("c\nd") + pickle.STACK_GLOBAL
    assert len(refusal(program(long))) < 400


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (programs.pointers(), "array of V8"),
        (programs.flagged(), "fields or objects"),
        (dtype("O"), "array of O"),
        (dtype("V8"), "array of V8"),
        (dtype("M8"), "array of M8"),
        (dtype("f4\x1b[2J\n"), r"array of f4\\x1b\[2J ,"),
        (call(programs.name("_codecs", "encode"), text("a"), text("\x1b[2J")), r"encodes text in \\x1b\[2J,"),
        (dtype("f4,O"), "array of f4,O"),
        (dtype("g"), "array of g"),
        (dtype("S0"), "array of S0"),
        (call(programs.DTYPE, LAUGHS), "array of tuple"),
        (dtype("u8", dtype_state(fields=dict_of())), "fields"),
        (dtype("u8", dtype_state(names=tuple_of())), "fields"),
        (dtype("u8", dtype_state(subarray=tuple_of())), "fields"),
        (dtype("u8", dtype_state(order="?")), "unknown byte order"),
        (array(tuple_of(whole(3)), dtype("u4"), raw(b"1" * 11)), "array of .3. uint32 with 11 bytes"),
        (array(tuple_of(whole(2**40), whole(2**40)), dtype("u4"), raw(b"")), "with 0 bytes"),
        (array(tuple_of(whole(-1)), dtype("u4"), raw(b"")), "whose shape is none"),
        (array(tuple_of(whole(2**63)), dtype("u4"), raw(b"")), "whose shape is none"),
        (array(tuple_of(*[whole(1)] * 33), dtype("u1"), raw(b"1")), "without dtype or shape"),
        (array(LAUGHS, dtype("u1"), raw(b"1")), "whose shape is none"),
        (array(tuple_of(whole(1)), text("u1"), raw(b"1")), "without dtype or shape"),
        (array(tuple_of(whole(1)), dtype("u1"), whole(2**40)), "whose content is a int"),
        (array(tuple_of(whole(1)), dtype("U1"), raw(b"\xff" * 4)), "characters that do not exist"),
        (call(programs.RECONSTRUCT), "without its content"),
    ],
)
def test_an_array_is_made_of_exactly_its_bytes(made, message):
    assert re.search(message, refusal(program(dict_of(text("data"), made))))


HOSTILE = """
import io, pickle
from lsgm_jax.unpickling.machine import load
from lsgm_jax.unpickling.numpy_names import NUMPY_NAMES
from tests.unpickling import programs

deep = programs.nested(300_000)
many = b"(" + b"N" * 1_100_000 + pickle.TUPLE
for parts in ([programs.pointers()], [programs.flagged()], [b"}", deep, b"N", pickle.SETITEM], [deep], [many]):
    try:
        load(io.BytesIO(programs.program(*parts)), NUMPY_NAMES)
    except pickle.UnpicklingError as error:
        print(error)
"""


def test_no_pickle_ends_the_process():
    """numpy takes the bytes of the first arrays for pointers; a hash of so many tuples overflows the stack."""
    ended = subprocess.run(
        [sys.executable, "-c", HOSTILE], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (ended.returncode, ended.stdout.count("its pickle "), ended.stderr) == (0, 5, "")


@st.composite
def any_program(draw):
    """Programs of opcodes in any order, most of which have some values to work on."""
    names = [pickle.GLOBAL + f"{a}\n{b}\n".encode() for a, b in NAMES]
    values = [
        b"N",
        b"]",
        b"}",
        b")",
        b"(",
        text("data"),
        text("f4"),
        whole(2),
        raw(b"12345678"),
        dtype("u1"),
        *names,
    ]
    acts = [
        code.code.encode("latin-1") for code in pickletools.opcodes if code.name in OPCODES and not code.arg
    ]
    memo = [pickle.BINPUT + b"\0", pickle.BINGET + b"\0", pickle.BINPUT + b"\1", pickle.BINGET + b"\1"]
    parts = st.one_of(*(st.sampled_from(some) for some in (values, acts, memo)))
    return program(*values[: draw(st.integers(0, 9))], *draw(st.lists(parts, max_size=40)))


@hypothesis.given(any_program())
@hypothesis.settings(deadline=None, max_examples=400)
def test_any_program_ends_in_a_value_or_in_one_line(content):
    line(content, NAMES)


VALID = pickle.dumps(
    {"data": np.arange(24, dtype=np.uint8).reshape(2, 12), b"labels": [3, 1], "n": (2.5, "a")}, 4
)


@hypothesis.given(mutated(VALID))
@hypothesis.settings(deadline=None, max_examples=200)
def test_a_damaged_pickle_is_read_or_refused(content):
    line(content)
