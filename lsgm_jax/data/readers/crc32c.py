"""CRC-32C (Castagnoli), the checksum of TFRecord files, vectorised over arrays of bytes.

A CRC is linear over GF(2) in the message and the register. The rows of a message are therefore processed in parallel
and then combined, after each register has been advanced past the bytes that follow its row.
"""

import functools

import numpy as np
from jaxtyping import UInt8, UInt32

POLYNOMIAL = 0x82F63B78  # reflected
ROW = 64  # bytes per row, processed one after the other; all rows are processed in parallel

Registers = UInt32[np.ndarray, "rows"]


def masked_crc32c(message: bytes) -> int:
    """Returns the checksum as TFRecord files store it: rotated, plus a constant, because records may contain CRCs."""
    crc = crc32c(message)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(message: bytes) -> int:
    """Returns the checksum of a message; 0xE3069283 for b"123456789"."""
    whole = len(message) // ROW * ROW
    rows = np.frombuffer(message, np.uint8, whole).reshape(-1, ROW)
    # The register starts with all ones: ones for the first row, zeros for the others.
    start = np.zeros(len(rows), np.uint32)
    start[:1] = 0xFFFFFFFF
    register = _combined(_updated(start, rows)) if whole else 0xFFFFFFFF
    for byte in message[whole:]:
        register = int(_bytes_table()[(register ^ byte) & 0xFF]) ^ register >> 8
    return register ^ 0xFFFFFFFF


def _updated(registers: Registers, rows: UInt8[np.ndarray, "rows length"]) -> Registers:
    """Returns the register of each row after the bytes of the row."""
    table = _bytes_table()
    for column in np.ascontiguousarray(rows.T):
        registers = table[(registers ^ column) & 0xFF] ^ registers >> 8
    return registers


def _combined(registers: Registers) -> int:
    """Combines the registers of single rows to that of all rows, pairwise until one is left."""
    level = 0
    while len(registers) > 1:
        if len(registers) % 2:  # a leading row of zeros changes nothing
            registers = np.concatenate([np.zeros(1, np.uint32), registers])
        first, second = registers[0::2], registers[1::2]
        registers = _advanced(first, level) ^ second
        level += 1
    return int(registers[0])


def _advanced(registers: Registers, level: int) -> Registers:
    """Advances registers by `ROW` 2^level zero bytes, with a table for each of their four bytes."""
    tables = _advance_tables(level)
    return functools.reduce(np.bitwise_xor, (tables[byte][registers >> 8 * byte & 0xFF] for byte in range(4)))


@functools.cache
def _advance_tables(level: int) -> UInt32[np.ndarray, "4 256"]:
    values = np.arange(256, dtype=np.uint32) << 8 * np.arange(4, dtype=np.uint32)[:, None]
    if level:
        return _advanced(_advanced(values.ravel(), level - 1), level - 1).reshape(4, 256)
    return _updated(values.ravel(), np.zeros((values.size, ROW), np.uint8)).reshape(4, 256)


@functools.cache
def _bytes_table() -> UInt32[np.ndarray, "256"]:
    """Returns the contribution of each value of the low byte after it has been shifted out."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(POLYNOMIAL), table >> 1).astype(np.uint32)
    return table
