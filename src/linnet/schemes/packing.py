# SPDX-License-Identifier: Apache-2.0
"""Codes to int32 words and back, exactly as compressed-tensors packs them (``pack_to_int32``, dense packing).

Element i of a row occupies bits [i * bits, (i + 1) * bits) of the row's little-endian bit stream; a row is padded to
whole int32 words and the padding bits are zero. Codes may straddle a word (3 bits). All functions are exact.
"""

import sys
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PACKABLE_BITS = (2, 3, 4, 8)

if sys.byteorder != "little":  # pragma: no cover - the mapped files are little-endian and never copied
    raise ImportError("linnet needs a little-endian machine")


def packed_columns(columns: int, bits: int) -> int:
    """int32 words of one packed row."""
    return -(-columns * bits // 32)


def pack_rows(unsigned: Array, bits: int) -> Array:
    """uint8 codes [rows, columns], each < 2 ** bits -> int32 [rows, packed_columns(columns, bits)]."""
    if bits not in PACKABLE_BITS:
        raise ValueError(f"cannot pack {bits}-bit codes; packable: {PACKABLE_BITS}")
    rows, columns = unsigned.shape
    words = packed_columns(columns, bits)
    padded = -(-columns // 32) * 32
    if padded != columns:
        wide = np.zeros((rows, padded), dtype=np.uint8)
        wide[:, :columns] = unsigned
        unsigned = wide
    else:
        unsigned = np.ascontiguousarray(unsigned, dtype=np.uint8)
    if bits == 8:
        stream = unsigned
    elif bits == 4:
        stream = unsigned[:, 1::2] << 4
        stream |= unsigned[:, 0::2]
    elif bits == 2:
        stream = unsigned[:, 3::4] << 6
        stream |= unsigned[:, 2::4] << 4
        stream |= unsigned[:, 1::4] << 2
        stream |= unsigned[:, 0::4]
    else:
        stream = _pack_three(unsigned)
    packed = np.ascontiguousarray(stream).view(np.int32).reshape(rows, -1)
    return packed if packed.shape[1] == words else np.ascontiguousarray(packed[:, :words])


def _pack_three(unsigned: Array) -> Array:
    """Eight 3-bit codes make three bytes."""
    rows, columns = unsigned.shape
    eights = unsigned.reshape(rows, columns // 8, 8).astype(np.uint32)
    joined = eights[:, :, 0].copy()
    for position in range(1, 8):
        joined |= eights[:, :, position] << np.uint32(3 * position)
    stream = joined.view(np.uint8).reshape(rows, columns // 8, 4)[:, :, :3]
    return np.ascontiguousarray(stream).reshape(rows, columns // 8 * 3)


def unpack_rows(packed: Array, bits: int, columns: int, offset: int) -> Array:
    """int32 [rows, words] -> int8 codes [rows, columns]; ``offset`` is subtracted from the unsigned codes."""
    rows, words = packed.shape
    if words != packed_columns(columns, bits):
        raise ValueError(f"{words} words hold no {columns} codes of {bits} bits")
    stream = np.ascontiguousarray(packed).view(np.uint8).reshape(rows, words * 4)
    if bits == 8:
        return (stream - np.uint8(offset)).view(np.int8)[:, :columns]
    if bits in (2, 4):
        per_byte = 8 // bits
        codes = _lookup(bits, per_byte, offset)[stream].view(np.int8).reshape(rows, -1)
        return codes[:, :columns]
    triples = -(-stream.shape[1] // 3)
    if triples * 3 != stream.shape[1]:
        wide = np.zeros((rows, triples * 3), dtype=np.uint8)
        wide[:, : stream.shape[1]] = stream
        stream = wide
    threes = stream.reshape(rows, triples, 3).astype(np.uint16)
    twelve = np.empty((rows, triples, 2), dtype=np.uint16)
    twelve[:, :, 0] = threes[:, :, 0] | ((threes[:, :, 1] & 15) << 8)
    twelve[:, :, 1] = (threes[:, :, 1] >> 4) | (threes[:, :, 2] << 4)
    return _lookup(3, 4, offset)[twelve].view(np.int8).reshape(rows, -1)[:, :columns]


@lru_cache(maxsize=16)
def _lookup(bits: int, count: int, offset: int) -> Array:
    """Every ``bits * count``-bit pattern -> its ``count`` codes minus offset, as one unsigned integer."""
    patterns = np.arange(2 ** (bits * count), dtype=np.int32)
    codes = np.stack([(patterns >> (bits * i)) & (2**bits - 1) for i in range(count)], axis=1) - offset
    table = codes.astype(np.int8).view({2: np.uint16, 4: np.uint32}[count]).reshape(-1)
    table.setflags(write=False)
    return table
