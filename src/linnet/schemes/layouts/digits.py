# SPDX-License-Identifier: Apache-2.0
"""Codes of two or three values as digits, as many in a byte as it holds: five ternary ones (3 ** 5 = 243), eight
binary ones. The first column's digit is the lowest; what fills the last byte of a row is the digit 0.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from linnet.errors import CheckpointError
from linnet.schemes.elements import Element
from linnet.schemes.groups import check_columns
from linnet.schemes.layouts.base import Array, Arrays, RowRanges, Shape, StoredTensor, take
from linnet.schemes.layouts.canonical import PACK_QUANTIZED, check_stored, pack_scale, stored_scale_shape
from linnet.schemes.scheme import LinearScheme

DIGITS_TENSOR, SHAPE = "weight_digits", "weight_shape"
PER_BYTE = {2: 8, 3: 5}
"""Digits in a byte, by how many values there are."""


@dataclass(frozen=True)
class DigitLayout:
    """``weight_digits`` uint8 [rows, ceil(columns / digits of a byte)], ``weight_scale``, ``weight_shape`` int64 [2].
    Implements ``WrittenLayout`` for symmetric elements of at most three values."""

    name: str = "digits"

    def stored(self, scheme: LinearScheme, shape: Shape) -> dict[str, StoredTensor]:
        """See Layout.stored."""
        weight = scheme.weight
        check_columns("weight", shape[1], weight)
        return {
            DIGITS_TENSOR: StoredTensor("uint8", (shape[0], -(-shape[1] // PER_BYTE[weight.numbers.levels]))),
            "weight_scale": StoredTensor(weight.scale_dtype, stored_scale_shape(weight, shape)),
            SHAPE: StoredTensor("int64", (2,)),
        }

    def codes(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """See Layout.codes."""
        numbers, digits = scheme.weight.numbers, arrays[DIGITS_TENSOR]
        wide = np.take(_codes_of_bytes(numbers.levels, int(numbers.smallest), int(numbers.step)), digits)
        codes = wide.view(np.int8).reshape(*digits.shape, 8)[:, :, : PER_BYTE[numbers.levels]]
        return np.ascontiguousarray(codes.reshape(shape[0], -1)[:, : shape[1]])

    def scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """See Layout.scales."""
        return PACK_QUANTIZED.scales(arrays, scheme, shape)

    def zero_points(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> None:
        """None: so few values lie around zero."""

    def minimums(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> None:
        """None, as ``zero_points``."""

    def stored_scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> None:
        """Every scale stands for itself."""

    def take_rows(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, ranges: RowRanges) -> dict[str, Array]:
        """See Layout.take_rows."""
        others = {name: array for name, array in arrays.items() if name != DIGITS_TENSOR}
        return {
            DIGITS_TENSOR: take(arrays[DIGITS_TENSOR], ranges),
            **PACK_QUANTIZED.take_rows(others, scheme, shape, ranges),
        }

    def check(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, where: str) -> None:
        """See Layout.check. Reads scales, and bytes where some of them are no digits."""
        check_stored(self.stored(scheme, shape), arrays, "weight_scale", where)
        levels = scheme.weight.numbers.levels
        largest, values = int(arrays[DIGITS_TENSOR].max()), levels ** PER_BYTE[levels]
        if largest >= values:
            raise CheckpointError(
                f"{where}.{DIGITS_TENSOR} holds {largest}; {PER_BYTE[levels]} digits of {levels} values make at most "
                f"{values - 1}"
            )

    def pack(self, codes: Array, scale: Array, zero_point: Array | None, scheme: LinearScheme) -> dict[str, Array]:
        """See WrittenLayout.pack."""
        shape = (codes.shape[0], codes.shape[1])
        return {
            DIGITS_TENSOR: pack_digits(codes, scheme.weight.numbers),
            "weight_scale": pack_scale(scale, scheme.weight, shape),
            SHAPE: np.array(shape, dtype=np.int64),
        }


DIGITS = DigitLayout()


def pack_digits(codes: Array, numbers: Element) -> Array:
    """Codes int8 [rows, columns] -> ``weight_digits``."""
    (rows, columns), count = codes.shape, PER_BYTE[numbers.levels]
    digits = np.zeros((rows, -(-columns // count), count), np.uint8)
    digits.reshape(rows, -1)[:, :columns] = (codes - np.int8(numbers.smallest)) // np.int8(numbers.step)
    stored = digits[:, :, count - 1].copy()
    for place in reversed(range(count - 1)):
        stored *= np.uint8(numbers.levels)
        stored += digits[:, :, place]
    return stored


@cache
def _codes_of_bytes(levels: int, smallest: int, step: int) -> Array:
    """uint64 [256]: the codes of a byte's digits, a byte each, the first column's lowest."""
    digits = np.zeros((256, 8), np.int8)
    for place in range(PER_BYTE[levels]):
        digits[:, place] = np.arange(256) // levels**place % levels * step + smallest
    table = digits.view(np.uint64).reshape(-1)
    table.setflags(write=False)
    return table
