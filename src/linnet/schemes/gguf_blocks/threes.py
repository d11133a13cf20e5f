# SPDX-License-Identifier: Apache-2.0
"""TQ1_0's codes: base 3, five to a byte (BitNet b1.58 in 1.69 bits; ggml's ``quantize_row_tq1_0_ref``).

A byte b holds the fraction b / 256, rounded up from sum(digit_k * 3 ** (4 - k)) / 243, so that digit k is the integer
part of 3 * (fraction of 3 ** k * b / 256), found with wrapping 8-bit products. 160 elements lie in 32 bytes, 80 in 16,
16 in 4 bytes of four digits; digit k of byte j of a run is element k * run + j.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_RUNS = (("fives", slice(0, 32), 5), ("fives", slice(32, 48), 5), ("fours", slice(0, 4), 4))
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)
_DIGITS = ((np.arange(256, dtype=np.uint8)[:, None] * _POWERS).astype(np.uint16) * 3 >> 8).astype(np.uint8)
"""[byte, place] -> digit."""


def unpack_threes(block: Array) -> Array:
    """Structured TQ1_0 blocks [n] -> uint8 digits [n, 256]."""
    runs: list[Array] = []
    for field, own, places in _RUNS:
        stored = np.ascontiguousarray(block[field][:, own])
        runs.extend(_DIGITS[:, place][stored] for place in range(places))
    return np.concatenate(runs, axis=1)


def pack_threes(codes: Array, block: Array) -> None:
    """uint8 digits [n, 256] -> the fields of ``block`` [n]; inverse of ``unpack_threes``."""
    start = 0
    for field, own, places in _RUNS:
        width = own.stop - own.start
        digits = codes[:, start : start + places * width].reshape(len(codes), places, width).astype(np.uint16)
        number = np.zeros((len(codes), width), np.uint16)
        for place in range(places):
            number += digits[:, place] * np.uint16(3 ** (4 - place))
        block[field][:, own] = ((number.astype(np.uint32) * 256 + 242) // 243).astype(np.uint8)
        start += places * width
