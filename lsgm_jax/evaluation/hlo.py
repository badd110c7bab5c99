"""What a compiled program does on each device, read from the text of its optimised HLO.

XLA's own cost analysis counts the body of a loop once. Here it counts as often as it runs: XLA writes known trip counts
into the text; others are given.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
PRODUCTS = ("convolution", "dot")
# Operations that name or regroup buffers and move nothing.
MOVE_NOTHING = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "conditional", "call",
    "partition-id", "replica-id",
)  # fmt: skip
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}|\b(?:true|false)_computation=%?([\w.\-]+)")


class Buffer(NamedTuple):
    """An array of the program."""

    dtype: str
    bytes: int
    in_hbm: bool  # and not in the chip's fast memory, to which the TPU's compiler moves what fits


class Instruction(NamedTuple):
    """An instruction of a computation."""

    name: str
    opcode: str
    results: tuple[Buffer, ...]
    arguments: str  # text in brackets after the opcode
    attributes: str  # text after that

    @property
    def operands(self) -> list[str]:
        """The names of the instructions that it takes."""
        return _NAME.findall(self.arguments)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of a kind on each device.

    Attributes:
        runs: how often they run.
        bytes: of the arrays that are reduced or gathered, as a whole.
        sent: bytes that leave each device, the fewest that any algorithm sends.
        in_loops: how many of the instructions stand in the body of a loop.
    """

    runs: int = 0
    bytes: int = 0
    sent: float = 0.0
    in_loops: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.runs + other.runs,
            self.bytes + other.bytes,
            self.sent + other.sent,
            self.in_loops + other.in_loops,
        )

    def times(self, runs: int, *, in_loop: bool) -> "Traffic":
        """Returns the traffic of so many runs of one instruction."""
        return Traffic(runs, runs * self.bytes, runs * self.sent, int(in_loop))


@dataclasses.dataclass
class Tally:
    """What a program does on each device in one call.

    Attributes:
        collectives: by kind.
        products: convolutions and matrix products, inside of fusions too, by (opcode, dtype of their inputs).
        converts: conversions between floating-point types, inside of fusions too.
        copies, copy_bytes: copies that stand by themselves, from and to HBM.
        hbm_bytes: read from and written to HBM by instructions, those of a fusion counted as one.
        cycles: of the core, as the TPU's compiler estimates them; 0 on other platforms.
        loops: trip counts of loops; None for one that XLA does not know.
    """

    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    products: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    converts: int = 0
    copies: int = 0
    copy_bytes: int = 0
    hbm_bytes: int = 0
    cycles: int = 0
    loops: list[int | None] = dataclasses.field(default_factory=list)


def tally(text: str, unknown_trips: int = 1) -> Tally:
    """Returns what a program does on each device.

    Args:
        text: of the optimised HLO, `compiled.as_text()`.
        unknown_trips: how often loops run whose number XLA does not know, and that stand in no other such loop.
    """
    entry, computations = parse(text)
    partitions = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    counting = _Counting(computations, unknown_trips, int(partitions[1]) if partitions else 1)
    counting.visit(entry, _Context())
    return counting.total


def parse(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """Returns the name of the entry computation, and the instructions of all computations."""
    entry, computations, current = "", {}, []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_instruction(*found.groups()))
    return entry, computations


def _instruction(name: str, rest: str) -> Instruction:
    shape = rest[: _closing(rest, 0)] if rest.startswith("(") else rest.partition(" ")[0]
    opcode, _, _ = rest[len(shape) :].strip().partition("(")
    start = rest.index("(", len(shape))
    end = _closing(rest, start)
    return Instruction(name, opcode, _buffers(shape), rest[start + 1 : end - 1], rest[end:])


def _closing(text: str, start: int) -> int:
    """Returns the position after the bracket that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    return len(text)


def _buffers(shape: str) -> tuple[Buffer, ...]:
    found = []
    for dtype, bits, sizes, layout in _ARRAY.findall(shape):
        count = math.prod(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        size = count * int(bits or 8) // 8
        found.append(Buffer(dtype, size, in_hbm=re.search(r"S\([1-9]", layout) is None))
    return tuple(found)


class _Context(NamedTuple):
    """How a computation runs: how often, in which kind of loop, and whether as the inside of a fusion."""

    times: int = 1
    looped: bool = False
    unknown: bool = False  # whether in a loop whose trip count XLA does not know
    fused: bool = False


class _Counting:
    """Walks the computations from the entry and adds up."""

    def __init__(self, computations: dict[str, list[Instruction]], unknown_trips: int, partitions: int):
        self.computations, self.total = computations, Tally()
        self._fused_channels: set[str] = set()
        self._unknown_trips, self._partitions = unknown_trips, partitions

    def visit(self, name: str, context: _Context) -> None:
        """Adds what a computation does, and what those do that it runs."""
        known = {instruction.name: instruction for instruction in self.computations[name]}
        for instruction in known.values():
            self._count(instruction, known, context, name)
            if not context.fused:
                self._count_memory(instruction, known, context.times)
            for kind, called in _called(instruction):
                if kind == "body":
                    inside = self._in_loop(instruction, context)
                else:
                    inside = context._replace(fused=context.fused or kind == "calls")
                self.visit(called, inside)

    def _in_loop(self, loop: Instruction, context: _Context) -> _Context:
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        self.total.loops.append(int(found[1]) if found else None)
        given = 1 if context.unknown else self._unknown_trips
        times = context.times * (int(found[1]) if found else given)
        return context._replace(times=times, looped=True, unknown=context.unknown or not found)

    def _count(
        self, instruction: Instruction, known: dict[str, Instruction], context: _Context, computation: str
    ) -> None:
        total, opcode = self.total, instruction.opcode.removesuffix("-start")
        names = (name for name in instruction.operands if name in known)
        operands = [buffer for name in names for buffer in known[name].results]
        if opcode in COLLECTIVES and not (context.fused and self._is_repeated(instruction)):
            # A fusion of this name is how the TPU's compiler writes a reduce-scatter.
            opcode = "reduce-scatter" if computation.startswith("all-reduce-scatter") else opcode
            traffic = self._traffic(opcode, instruction.attributes, sum(buffer.bytes for buffer in operands))
            before = total.collectives.get(opcode, Traffic())
            total.collectives[opcode] = before + traffic.times(context.times, in_loop=context.looped)
        elif opcode in PRODUCTS:
            dtypes = "*".join(dict.fromkeys(buffer.dtype for buffer in operands[:2]))
            total.products[opcode, dtypes] += context.times
        elif opcode == "convert":
            both = {buffer.dtype for buffer in (*operands, *instruction.results)}
            total.converts += context.times * (both == {"f32", "bf16"})

    def _is_repeated(self, collective: Instruction) -> bool:
        """Whether fusions have the collective already: its start, what runs meanwhile, and its end show it again."""
        found = re.search(r"channel_id=(\d+)", collective.attributes)
        repeated = found is not None and found[1] in self._fused_channels
        if found:
            self._fused_channels.add(found[1])
        return repeated

    def _traffic(self, kind: str, attributes: str, size: int) -> Traffic:
        """Returns the traffic of one collective whose inputs have `size` bytes on each device."""
        devices = _group_size(attributes, self._partitions)
        share = (devices - 1) / devices
        if kind == "all-gather":
            return Traffic(1, size * devices, share * size * devices)
        if kind == "all-reduce":
            return Traffic(1, size, 2.0 * share * size)
        return Traffic(1, size, (1.0 if kind == "collective-permute" else share) * size)

    def _count_memory(self, instruction: Instruction, known: dict[str, Instruction], times: int) -> None:
        opcode = instruction.opcode
        cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        self.total.cycles += times * int(cycles[1]) if cycles else 0
        if opcode in MOVE_NOTHING or opcode.endswith("-done"):
            return
        # The result of an asynchronous copy is a tuple: the copy, its source again, and a token.
        results = instruction.results[:1] if opcode == "copy-start" else instruction.results
        read = self._read(instruction, known)
        moved = read + sum(buffer.bytes for buffer in results if buffer.in_hbm)
        self.total.hbm_bytes += times * moved
        if opcode in ("copy", "copy-start"):
            self.total.copies += times
            self.total.copy_bytes += times * moved

    def _read(self, instruction: Instruction, known: dict[str, Instruction]) -> int:
        """Returns the bytes that an instruction reads from HBM."""
        total, used = 0, self._slices(instruction)
        for index, name in enumerate(instruction.operands):
            if name not in known or name in instruction.operands[:index]:
                continue
            size = sum(buffer.bytes for buffer in known[name].results if buffer.in_hbm)
            total += min(size, used.get(index, size))
        return total

    def _slices(self, instruction: Instruction) -> dict[int, int]:
        """Returns for the operands of which a fusion reads slices alone how many bytes these have."""
        if instruction.opcode in ("dynamic-slice", "slice", "gather"):
            return {0: sum(buffer.bytes for buffer in instruction.results)}
        called = [name for kind, name in _called(instruction) if kind == "calls"]
        if instruction.opcode != "fusion" or not called:
            return {}
        inside, slices = self.computations[called[0]], {}
        for parameter in inside:
            if parameter.opcode != "parameter":
                continue
            uses = [other for other in inside if parameter.name in other.operands]
            if uses and all(other.opcode == "dynamic-slice" for other in uses):
                slices[int(parameter.arguments)] = sum(
                    buffer.bytes for other in uses for buffer in other.results
                )
        return slices


def _called(instruction: Instruction) -> Iterator[tuple[str, str]]:
    """Yields the computations that an instruction runs, and as what; not the ones that reductions combine with."""
    for kind, name in _CALLED.findall(instruction.attributes):
        if kind != "to_apply" or instruction.opcode in ("call", "async-start"):
            yield kind, name
    for several, one in _BRANCHES.findall(instruction.attributes):
        for name in [*_NAME.findall(several), *filter(None, [one])]:
            yield "branch", name


def _group_size(attributes: str, partitions: int) -> int:
    """Returns the number of devices that take part in a collective; XLA writes groups in three ways."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])  # an axis, or a part of one
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return partitions
