"""Accelerators, and the shortest time in which one could run a program.

A program takes no less than its operations take at peak, its bytes at the bandwidth of the memory, or its collectives
at that of the links, whichever is longest. Overlap is perfect in that bound; a real program is slower.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """Figures of one chip, decimal units per second.

    Attributes:
        flops: peak in bfloat16. By default a TPU multiplies float32 in bfloat16 as well.
        hbm_gib: memory, GiB.
        hbm_bandwidth: bytes read or written.
        ici_bandwidth: bytes sent over all links to other chips: half of what both directions have.
        hertz: cycles of the core; the peak over the operations per cycle of its matrix units.
    """

    flops: float
    hbm_gib: float
    hbm_bandwidth: float
    ici_bandwidth: float
    hertz: float


# Google Cloud's documentation, docs.cloud.google.com/tpu/docs/ and there v4, v5e, v5p, v6e. Of the 16 GiB of a v5e the
# compiler gives 15.75 to programs. The keys are the beginnings of topologies' names.
CHIPS = {
    "v4": Chip(275e12, 32, 1.2e12, 300e9, 1.05e9),
    "v5e": Chip(197e12, 15.75, 819e9, 200e9, 1.5e9),
    "v5p": Chip(459e12, 95, 2.765e12, 600e9, 1.75e9),
    "v6e": Chip(918e12, 32, 1.638e12, 400e9, 1.75e9),
}


class Bound(NamedTuple):
    """Seconds that a program takes at least, by what limits it.

    Attributes:
        compute: convolutions and matrix products at the chip's peak.
        memory: bytes to and from HBM.
        links: bytes that collectives send.
    """

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The longest of the three."""
        return max(self)

    @property
    def limit(self) -> str:
        """What takes the longest."""
        return self._fields[self.index(self.seconds)]


def bound(chip: Chip, flops: float, hbm_bytes: float, sent_bytes: float) -> Bound:
    """Returns the bound for a program of so many operations and bytes on each chip."""
    return Bound(flops / chip.flops, hbm_bytes / chip.hbm_bandwidth, sent_bytes / chip.ici_bandwidth)
