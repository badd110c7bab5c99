"""Reads a pickle as data: it builds containers, numbers and text, and calls none but the functions of a table.

A pickle is a program. `pickle.Unpickler` takes it at its word: it hashes whatever is a key, sets the state of any
object, and reserves the memory that an operand claims. Here every opcode is one line of `OPCODES`. Operands are read
by the standard library's `pickletools`, from a file that returns no more bytes than it has.
"""

import codecs
import pickle
import pickletools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lsgm_jax.errors import UserError, first_line, printable
from lsgm_jax.unpickling.values import Inert, finished, require_key

MOST_OPCODES = 2**20  # a batch of 130,000 labels has 300,000, a checkpoint of 3,000 tensors 100,000
MOST_BITS = 512  # of a whole number
LONGEST_NAME = 200


@runtime_checkable
class Readable(Protocol):
    """A file in memory, such as `io.BytesIO` or `mmap.mmap`; others may reserve as much as they are to read."""

    def read(self, count: int, /) -> bytes:
        """Returns the next bytes, fewer at the end."""
        ...

    def readline(self) -> bytes:
        """Returns the bytes up to the next line break, with it."""
        ...


class Function(NamedTuple):
    """What a name in a pickle stands for, if the pickle may call it."""

    call: Callable[..., Any]


# (module, name) in a pickle -> a function, or text for a name that is a mere label.
Names = Mapping[tuple[str, str], Function | str]
Fetch = Callable[[Any], Any]  # a persistent id -> the object that is stored elsewhere


def load(file: Readable, names: Names, fetch: Fetch | None = None) -> Any:
    """Returns the value of the next pickle in `file`: dictionaries, lists, tuples, numbers, text and what `names` make.

    As a tree it has a bounded size and depth, so it may be copied, printed and walked through by recursion. Text of
    Python 2 is decoded as latin-1.

    Args:
        file: is left behind the pickle.
        names: all names that the pickle may use.
        fetch: returns objects of persistent ids; None if the pickle must not have any.

    Raises:
        pickle.UnpicklingError: if the pickle is damaged, uses another name, or exceeds the bounds.
    """
    try:
        return finished(_Machine(names, fetch).run(file))
    except (UserError, pickle.UnpicklingError):
        raise
    # Damaged opcodes and operands can raise anything.
    except Exception as error:
        raise pickle.UnpicklingError(f"its pickle is damaged or incomplete ({first_line(error)})") from error


class _Machine:
    """The state of a pickle that is being read. A mark sets the stack aside; the matching opcode takes it up again."""

    def __init__(self, names: Names, fetch: Fetch | None):
        self.names, self.fetch = names, fetch
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: Readable) -> Any:
        """Returns the value at STOP."""
        for _ in range(MOST_OPCODES):
            code = CODES.get(file.read(1))
            if code is None:
                raise pickle.UnpicklingError(
                    "its pickle is damaged or incomplete (no opcode where one should be)"
                )
            operand = code.read(file) if code.read else None
            if code.name == "STOP":
                return self.stack.pop()
            code.act(self, operand)
        raise pickle.UnpicklingError(f"its pickle has more than {MOST_OPCODES} opcodes")

    def pop_mark(self) -> list[Any]:
        """Returns what was pushed since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, count: int) -> list[Any]:
        """Returns the last `count` values."""
        if len(self.stack) < count:
            raise IndexError("its stack is too short")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items


Act = Callable[[_Machine, Any], object]


def _push(machine: _Machine, operand: Any) -> None:
    if type(operand) is int and operand.bit_length() > MOST_BITS:
        raise pickle.UnpicklingError(f"its pickle has a number of {operand.bit_length()} bits")
    machine.stack.append(operand)


def _pop(machine: _Machine, _: None) -> None:
    """Drops the last value, or an empty mark, as the pickles of old versions of Python do."""
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _set_mark(machine: _Machine, _: None) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _extend(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not list:
        raise TypeError(f"a {type(target).__name__} takes no items")
    target.extend(items)


def _put(machine: _Machine, pairs: list[Any]) -> None:
    """Adds keys and values, which alternate, to the dictionary on the stack."""
    target = machine.stack[-1]
    if type(target) is not dict or len(pairs) % 2:
        raise TypeError(f"a {type(target).__name__} takes no keys")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        target[require_key(key)] = value


def _new_dict(machine: _Machine, _: None) -> None:
    pairs = machine.pop_mark()
    machine.stack.append({})
    _put(machine, pairs)


def _keep(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _look_up(machine: _Machine, name: tuple[str, str]) -> None:
    if name not in machine.names:
        shown = printable(".".join(name)[:LONGEST_NAME])
        raise pickle.UnpicklingError(
            f"its pickle names {shown}, which no data need: refused, and nothing was run"
        )
    machine.stack.append(machine.names[name])


def _look_up_pair(machine: _Machine, _: None) -> None:
    module, name = machine.pop(2)
    if not (type(module) is type(name) is str):
        raise TypeError("a name that is not text")
    _look_up(machine, (module, name))


def _call(machine: _Machine, _: None) -> None:
    function, arguments = machine.pop(2)
    if type(function) is not Function or type(arguments) is not tuple:
        raise TypeError(f"a {type(function).__name__} is not callable")
    machine.stack.append(function.call(*arguments))


def _set_state(machine: _Machine, _: None) -> None:
    (state,), target = machine.pop(1), machine.stack[-1]
    if isinstance(target, Inert):
        target.set_state(state)
    elif isinstance(target, types.SimpleNamespace):
        vars(target).update({require_key(key): value for key, value in state.items()})
    elif type(target) is not dict:  # attributes of a dictionary are dropped
        raise TypeError(f"a {type(target).__name__} has no state")


def _fetch(machine: _Machine, _: None) -> None:
    if machine.fetch is None:
        raise TypeError("it refers to an object outside of it")
    machine.stack.append(machine.fetch(*machine.pop(1)))


def _made(make: Callable[[], Any]) -> Act:
    """Returns the act that pushes a new value."""
    return lambda machine, _: machine.stack.append(make())


def _joined(make: Callable[[list[Any]], Any], count: int | None = None) -> Act:
    """Returns the act that replaces the last `count` values, or those since the mark, by one."""
    if count is None:
        return lambda machine, _: (items := machine.pop_mark(), machine.stack.append(make(items)))
    return lambda machine, _: machine.stack.append(make(machine.pop(count)))


NOTHING: Act = lambda machine, _: None
OPCODES: dict[str, Act] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), NOTHING),
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _push
    ),
    **dict.fromkeys(
        ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"), _push
    ),
    **dict.fromkeys(("BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    "NONE": _made(lambda: None),
    "NEWTRUE": _made(lambda: True),
    "NEWFALSE": _made(lambda: False),
    "EMPTY_TUPLE": _made(tuple),
    "EMPTY_LIST": _made(list),
    "EMPTY_DICT": _made(dict),
    "EMPTY_SET": _made(list),  # whose members need no hash
    "MARK": _set_mark,
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "POP": _pop,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "LIST": _joined(list),
    "TUPLE": _joined(tuple),
    "FROZENSET": _joined(tuple),
    "TUPLE1": _joined(tuple, 1),
    "TUPLE2": _joined(tuple, 2),
    "TUPLE3": _joined(tuple, 3),
    "DICT": _new_dict,
    "APPEND": lambda machine, _: _extend(machine, machine.pop(1)),
    "APPENDS": lambda machine, _: _extend(machine, machine.pop_mark()),
    "ADDITEMS": lambda machine, _: _extend(machine, machine.pop_mark()),
    "SETITEM": lambda machine, _: _put(machine, machine.pop(2)),
    "SETITEMS": lambda machine, _: _put(machine, machine.pop_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _keep),
    "MEMOIZE": lambda machine, _: _keep(machine, len(machine.memo)),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.stack.append(machine.memo[index])
    ),
    "GLOBAL": lambda machine, name: _look_up(machine, name.partition(" ")[::2]),
    "STACK_GLOBAL": _look_up_pair,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _set_state,
    "BINPERSID": _fetch,
}


class _Code(NamedTuple):
    """An opcode: how to read its operand, and what it does."""

    name: str
    read: Callable[[Any], Any] | None
    act: Act


def _quoted(file: Any) -> str:
    """Returns text in quotes, in which bytes that are not ASCII are escaped; `pickletools` decodes it as ASCII."""
    line: Any = pickletools.read_stringnl(file, decode=False)
    return codecs.escape_decode(line)[0].decode("latin-1")  # pyright: ignore[reportAttributeAccessIssue]


def _codes() -> dict[bytes, _Code]:
    readers = {opcode.name: opcode.arg.reader for opcode in pickletools.opcodes if opcode.arg}
    readers["STRING"] = _quoted
    return {
        opcode.code.encode("latin-1"): _Code(opcode.name, readers.get(opcode.name), OPCODES[opcode.name])
        for opcode in pickletools.opcodes
        if opcode.name in OPCODES
    }


CODES = _codes()
