# SPDX-License-Identifier: Apache-2.0
"""Small unsigned numbers out of bytes and back, as ggml lays them out: parts of a byte lie a run of elements apart.

A plane cuts ``bits`` wide parts out of every byte, lowest first. Runs of ``run`` bytes belong together: part p of byte
j of run r is element (r * parts + p) * run + j. So a Q4_0 block keeps elements 0 ... 15 in the low and 16 ... 31 in the
high halves of its bytes (run 16), Q4_K the same with runs of 32. Codes wider than one plane are the sum of several,
each shifted. All functions are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_ITEMS = {4: "u4", 8: "u8", 16: "c16", 32: "V32", 64: "V64"}
"""One array item per run of so many bytes: copying items is far faster than short inner loops."""


@dataclass(frozen=True)
class Plane:
    """``bits`` bits of every code, from bit ``shift`` on, in the bytes of ``field``."""

    field: str
    bits: int
    run: int
    shift: int = 0

    @property
    def parts(self) -> int:
        """Codes that one byte takes part in."""
        return 8 // self.bits


def unpack(block: Array, planes: Sequence[Plane]) -> Array:
    """Structured blocks [n] -> uint8 codes [n, elements]."""
    codes: Array | None = None
    for plane in planes:
        part = _unpack_plane(np.ascontiguousarray(block[plane.field]), plane)
        if codes is None:
            codes = part
        else:
            codes |= part
    assert codes is not None
    return codes


def pack(codes: Array, planes: Sequence[Plane], block: Array) -> None:
    """uint8 codes [n, elements] -> the fields of ``block`` [n] that ``planes`` name. Inverse of ``unpack``."""
    count = len(codes)
    for plane in planes:
        runs = codes.reshape(count, -1, plane.parts, plane.run)
        mask = np.uint8(2**plane.bits - 1)
        stored = np.zeros((count, runs.shape[1], plane.run), np.uint8)
        for part in range(plane.parts):
            stored |= ((runs[:, :, part] >> np.uint8(plane.shift)) & mask) << np.uint8(part * plane.bits)
        block[plane.field] = stored.reshape(count, -1)


def _unpack_plane(stored: Array, plane: Plane) -> Array:
    count, width = stored.shape
    if plane.parts == 1:
        return stored if plane.shift == 0 else stored << np.uint8(plane.shift)
    if plane.run == 1:
        return _lookup(plane.bits, plane.shift)[stored].view(np.uint8).reshape(count, width * plane.parts)
    codes = np.empty((count, width // plane.run, plane.parts, plane.run), np.uint8)
    item = _ITEMS[plane.run]
    targets = codes.view(item)[..., 0]
    mask = np.uint8(2**plane.bits - 1)
    for part in range(plane.parts):
        own = stored >> np.uint8(part * plane.bits) if part else stored
        own = own & mask
        if plane.shift:
            own <<= np.uint8(plane.shift)
        targets[:, :, part] = own.view(item).reshape(count, -1)
    return codes.reshape(count, -1)


@lru_cache(maxsize=8)
def _lookup(bits: int, shift: int) -> Array:
    """Every byte -> its parts, shifted, as one unsigned integer."""
    parts = 8 // bits
    values = np.arange(256, dtype=np.uint16)
    codes = np.stack([((values >> (bits * part)) & (2**bits - 1)) << shift for part in range(parts)], axis=1)
    table = codes.astype(np.uint8).view({2: np.uint16, 4: np.uint32, 8: np.uint64}[parts]).reshape(-1)
    table.setflags(write=False)
    return table
