"""CRC-32C (Castagnoli), the checksum of TFRecord files, on whole arrays of bytes.

A CRC is linear over GF(2) in the message and the register, so that parts of a message are summed side by side and then
joined, each moved past the bytes that follow it.
"""

import functools

import numpy as np
from jaxtyping import UInt8, UInt32

POLYNOMIAL = 0x82F63B78  # reflected
ROW = 64  # bytes that are gone through one by one; there are as many rows as it takes

Registers = UInt32[np.ndarray, "rows"]


def masked_crc32c(message: bytes) -> int:
    """The checksum as TFRecord files have it: rotated and shifted, for it may be stored within what it checks."""
    crc = crc32c(message)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(message: bytes) -> int:
    """The checksum of a message; 0xE3069283 for b"123456789"."""
    whole = len(message) // ROW * ROW
    rows = np.frombuffer(message, np.uint8, whole).reshape(-1, ROW)
    # The register starts with ones: the same as a first row that begins so, and zeros for the others.
    start = np.zeros(len(rows), np.uint32)
    start[:1] = 0xFFFFFFFF
    register = _joined(_through(start, rows)) if whole else 0xFFFFFFFF
    for byte in message[whole:]:
        register = int(_bytes_table()[(register ^ byte) & 0xFF]) ^ register >> 8
    return register ^ 0xFFFFFFFF


def _through(registers: Registers, rows: UInt8[np.ndarray, "rows length"]) -> Registers:
    """Each row's register after its bytes."""
    table = _bytes_table()
    for column in np.ascontiguousarray(rows.T):
        registers = table[(registers ^ column) & 0xFF] ^ registers >> 8
    return registers


def _joined(registers: Registers) -> int:
    """The register after all rows, of those after each alone: neighbours are joined until one is left."""
    level = 0
    while len(registers) > 1:
        if len(registers) % 2:  # a row of zeros before the first changes nothing
            registers = np.concatenate([np.zeros(1, np.uint32), registers])
        first, second = registers[0::2], registers[1::2]
        registers = _moved(first, level) ^ second
        level += 1
    return int(registers[0])


def _moved(registers: Registers, level: int) -> Registers:
    """Registers after `ROW` 2^level more bytes of zero, by four tables of what each of their bytes becomes."""
    tables = _moving_tables(level)
    return functools.reduce(np.bitwise_xor, (tables[byte][registers >> 8 * byte & 0xFF] for byte in range(4)))


@functools.cache
def _moving_tables(level: int) -> UInt32[np.ndarray, "4 256"]:
    values = np.arange(256, dtype=np.uint32) << 8 * np.arange(4, dtype=np.uint32)[:, None]
    if level:
        return _moved(_moved(values.ravel(), level - 1), level - 1).reshape(4, 256)
    return _through(values.ravel(), np.zeros((values.size, ROW), np.uint8)).reshape(4, 256)


@functools.cache
def _bytes_table() -> UInt32[np.ndarray, "256"]:
    """What each value of the register's low byte adds once it has been shifted out."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(POLYNOMIAL), table >> 1).astype(np.uint32)
    return table
