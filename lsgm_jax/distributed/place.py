"""The place of a process among all processes of a run."""

import dataclasses
import os
import re
from collections.abc import Collection, Sequence

from lsgm_jax.errors import ClusterError, printable

MOST_NAMED = 16  # processes in an error message


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a process among all processes.

    Attributes:
        coordinator: HOST:PORT of process 0, reachable from all others.
        processes: number of processes.
        process: index of this process, from 0.
        devices: indices of its devices on its machine; None for all.
    """

    coordinator: str
    processes: int
    process: int
    devices: tuple[int, ...] | None = None

    def __post_init__(self):
        if not 0 <= self.process < self.processes:
            raise ClusterError(
                f"process {self.process} of {self.processes}: processes are 0 to {self.processes - 1}"
            )
        _address(self.coordinator, "coordinator")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        return _address(self.coordinator, "coordinator")

    @property
    def bind(self) -> str:
        """HOST:PORT at which process 0 listens: that of the coordinator, or JAX's variable for another one."""
        return os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or self.coordinator

    @property
    def bind_address(self) -> tuple[str, int]:
        """Host and port at which process 0 listens."""
        return _address(self.bind, "JAX_COORDINATOR_BIND_ADDRESS")

    def of(self, process: int) -> str:
        """Returns the name of a process in errors."""
        return f"process {process} of {self.processes}"


def _address(text: str, what: str) -> tuple[str, int]:
    found = re.fullmatch(r"([^\s:]+|\[[0-9a-fA-F:.]+\]|[0-9a-fA-F:.]+):([0-9]{1,5})", text)
    if found is None or not text.isprintable() or not 0 < int(found[2]) < 2**16:
        raise ClusterError(f"{what} {printable(text)!r}: give HOST:PORT of process 0")
    return found[1].strip("[]"), int(found[2])


def missing_message(place: Place, missing: Collection[int], where: str, timeout: float) -> str:
    """Returns the error message that names the processes that did not arrive; the first of them if they are many."""
    return missing_first(place, len(missing), sorted(missing)[:MOST_NAMED], where, timeout)


def missing_first(place: Place, count: int, first: Sequence[int], where: str, timeout: float) -> str:
    """Returns the error message for `count` missing processes, of which the first are known."""
    listed = ", ".join(map(str, first))
    more = f" and {count - len(first)} others" if count > len(first) else ""
    return (
        f"process{'es' if count > 1 else ''} {listed}{more} of {place.processes} did not arrive at {where} "
        f"within {timeout:g} s: see its output, or wait longer by --timeout"
    )
