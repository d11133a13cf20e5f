# SPDX-License-Identifier: Apache-2.0
"""2:4 without its zeros, compressed-tensors' ``sparse-24-bitmask``: two of every four neighbouring columns, and a bit
per column that says which two. Of plain numbers, of bytes (int8, fp8), and of narrower integers, which lie in words as
in ``pack-quantized`` and for which compressed-tensors has no word.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from linnet.errors import CheckpointError, UnsupportedError
from linnet.schemes import codecs
from linnet.schemes.layouts.base import Array, Arrays, RowRanges, Shape, StoredTensor, take
from linnet.schemes.layouts.canonical import INT_QUANTIZED, check_stored, code_offset, stored_scale_shape
from linnet.schemes.packing import pack_rows, packed_columns, unpack_rows
from linnet.schemes.scheme import LinearScheme, Scheme
from linnet.schemes.sparsity import TWO_OF_FOUR

KEPT, MASK, SHAPE, SCALES = "compressed", "bitmask", "shape", "weight_scale"
_FULL = 2
"""Of a group of four, how many are kept."""


@dataclass(frozen=True)
class Sparse24:
    """``compressed`` [rows, columns / 2] (or int32 words), ``bitmask`` uint8 [rows, ceil(columns / 8)], column 0 in the
    lowest bit, two bits in every four; ``shape`` int64 [2, 1]; ``weight_scale`` unless numbers are plain. Implements
    ``WrittenLayout`` for schemes with ``sparsity``."""

    name: str = "sparse-24-bitmask"

    def stored(self, scheme: LinearScheme, shape: Shape) -> dict[str, StoredTensor]:
        """See Layout.stored. ConfigError also if the columns are no multiple of four."""
        (rows, columns), weight = shape, scheme.weight
        TWO_OF_FOUR.check_columns("weight", columns)
        kept = StoredTensor(_kept_type(weight), (rows, columns // 2))
        if _in_words(weight):
            kept = StoredTensor("int32", (rows, packed_columns(columns // 2, weight.bits)))
        tensors = {
            KEPT: kept,
            MASK: StoredTensor("uint8", (rows, -(-columns // 8))),
            SHAPE: StoredTensor("int64", (2, 1)),
        }
        if not weight.numbers.plain:
            tensors[SCALES] = StoredTensor(weight.scale_dtype, stored_scale_shape(weight, shape))
        return tensors

    def codes(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """See Layout.codes."""
        kept = self.kept(arrays, scheme, shape)
        codes = np.zeros(shape, kept.dtype)
        codes[_columns_kept(arrays[MASK], shape)] = kept.reshape(-1)
        return codes

    def kept(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """[rows, columns / 2] of the element's ``code_type``: the codes that are not left out, in order."""
        weight = scheme.weight
        if not _in_words(weight):
            return arrays[KEPT]
        unpacked = unpack_rows(arrays[KEPT], weight.bits, shape[1] // 2, code_offset(weight))
        return unpacked.view(weight.numbers.code_type)

    def scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """See Layout.scales: of plain numbers 1."""
        if scheme.weight.numbers.plain:
            return np.ones(codecs.scale_shape(scheme.weight, shape), np.float32)
        return INT_QUANTIZED.scales(arrays, scheme, shape)

    def zero_points(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> None:
        """None: zeros that are left out have the code 0."""

    def minimums(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> None:
        """None, as ``zero_points``."""

    def stored_scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> None:
        """Every scale stands for itself."""

    def take_rows(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, ranges: RowRanges) -> dict[str, Array]:
        """See Layout.take_rows."""
        others = {name: array for name, array in arrays.items() if name not in (KEPT, MASK, SHAPE)}
        rows = sum(stop - start for start, stop in ranges)
        return {
            KEPT: take(arrays[KEPT], ranges),
            MASK: take(arrays[MASK], ranges),
            SHAPE: np.array([[rows], [shape[1]]], np.int64),
            **INT_QUANTIZED.take_rows(others, scheme, shape, ranges),
        }

    def check(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, where: str) -> None:
        """See Layout.check. Reads scales and the whole mask."""
        check_stored(self.stored(scheme, shape), arrays, SCALES, where)
        whole, mask = _filled(), arrays[MASK]
        wrong = whole[mask] != mask
        if shape[1] % 8:  # the last byte's upper half stands for no columns
            wrong[:, -1] = (mask[:, -1] > 15) | (whole[mask[:, -1]] & 15 != mask[:, -1])
        if wrong.any():
            row, byte = (int(at[0]) for at in np.nonzero(wrong))
            raise CheckpointError(
                f"{where}.{MASK} does not keep two of four columns in row {row}, columns {8 * byte} to {8 * byte + 7}: "
                f"{int(mask[row, byte]):#010b}"
            )

    def pack(self, codes: Array, scale: Array, zero_point: Array | None, scheme: LinearScheme) -> dict[str, Array]:
        """See WrittenLayout.pack. Of a group with fewer codes than two the first columns are stored too.
        UnsupportedError if one has more."""
        weight, shape = scheme.weight, (codes.shape[0], codes.shape[1])
        stored = self.stored(scheme, shape)
        present = np.packbits(codes != 0, axis=1, bitorder="little")
        mask = _filled()[present]
        if shape[1] % 8:
            mask[:, -1] &= 15
        if (present & ~mask).any():
            raise UnsupportedError(
                "a weight that is to be stored as 2:4 has more than two numbers other than zero in four neighbouring "
                "columns"
            )
        kept = codes[_columns_kept(mask, shape)].reshape(shape[0], shape[1] // 2)
        if _in_words(weight):
            kept = pack_rows(kept.view(np.uint8) + np.uint8(code_offset(weight)), weight.bits)
        arrays = {KEPT: kept, MASK: mask, SHAPE: np.array([[shape[0]], [shape[1]]], np.int64)}
        if not weight.numbers.plain:
            dtype = codecs.FLOAT_DTYPES[weight.scale_dtype]
            arrays[SCALES] = np.ascontiguousarray(scale.astype(dtype).reshape(stored[SCALES].shape))
        return arrays


SPARSE_24 = Sparse24()


def _in_words(weight: Scheme) -> bool:
    return weight.numbers.packable and weight.bits != 8


def _kept_type(weight: Scheme) -> str:
    return "int8" if weight.numbers.integer else weight.element


def _columns_kept(mask: Array, shape: Shape) -> Array:
    """bool [rows, columns]."""
    return np.unpackbits(mask, axis=1, count=shape[1], bitorder="little").view(np.bool_)


@cache
def _filled() -> Array:
    """Eight columns' bits -> the same with exactly two in either half, the lowest added; where one has more, 0."""
    halves = []
    for bits in range(16):
        half = bits
        for place in range(4):
            if half.bit_count() < _FULL:
                half |= 1 << place
        halves.append(half if half.bit_count() == _FULL else 0)
    table = np.array([halves[bits & 15] | halves[bits >> 4] << 4 for bits in range(256)], np.uint8)
    table.setflags(write=False)
    return table
