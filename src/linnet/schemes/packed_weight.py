# SPDX-License-Identifier: Apache-2.0
"""A quantised weight as one value: its scheme, its arrays as their layout stores them, its logical shape.

``dequantize`` defines what a scheme means; every kernel is measured against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from linnet.schemes import codecs
from linnet.schemes.elements import ELEMENTS, ElementName
from linnet.schemes.gguf_blocks import BlockScales
from linnet.schemes.layouts import CODEBOOK, Layout, WrittenLayout, layout_of
from linnet.schemes.packing import pack_rows
from linnet.schemes.scheme import LinearScheme, Scheme
from linnet.schemes.sparsity import TWO_OF_FOUR

Array = npt.NDArray[Any]
COLUMN_ORDER = "column_order"
"""Array of a weight whose columns are sorted by group."""
LARGEST_WHOLE = 32767
"""What the greatest value of a learned table becomes where products are made of integers."""


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """``arrays`` maps the layout's names (``weight_packed``, ``weight_scale`` ...) to arrays, usually mapped views.

    ``shape`` is the logical [rows, columns].
    """

    scheme: LinearScheme
    shape: tuple[int, int]
    layout: Layout
    arrays: Mapping[str, Array]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def codes(self) -> Array:
        """[rows, columns]: int8 codes (bytes from 0 under a minimum); codebooks: uint8 indices; fp8: values."""
        return self.layout.codes(self.arrays, self.scheme, self.shape)

    def scales(self) -> Array:
        """fp32 scales: [1, 1], [rows, 1], [rows, groups] or [row blocks, column blocks]."""
        return self.layout.scales(self.arrays, self.scheme, self.shape)

    def zero_points(self) -> Array | None:
        """int8 zero points in the shape of ``scales()``; None if there are none."""
        return self.layout.zero_points(self.arrays, self.scheme, self.shape)

    def minimums(self) -> Array | None:
        """fp32 minimums in the shape of ``scales()``; None if there are none."""
        return self.layout.minimums(self.arrays, self.scheme, self.shape)

    def stored_scales(self) -> BlockScales | None:
        """Scales and minimums of both levels as stored, if the scheme has minimums or two levels; else None."""
        return self.layout.stored_scales(self.arrays, self.scheme, self.shape)

    def dequantize(self) -> Array:
        """fp32 [rows, columns]: (code - zero point) * scale, or code * scale - minimum, in that order.

        Columns are the logical ones, in whatever order they are stored.
        """
        if self.scheme.weight.numbers.learned:
            table = self.arrays[CODEBOOK].astype(np.float32)
            looked_up: Array = np.take_along_axis(table, self.codes().astype(np.intp), axis=1)
            return looked_up
        values = codecs.dequantize(self.codes(), self.scheme.weight, self.scales(), self.zero_points(), self.minimums())
        if self.scheme.sorted_columns:
            return values[:, np.argsort(self.arrays[COLUMN_ORDER])]
        return values

    def whole_numbers(self) -> tuple[Array, Array]:
        """Of learned tables: int16 [rows, columns] and fp32 [rows, 1] whose product is the weight as rounded inputs
        meet it: values in units of their row's greatest magnitude / LARGEST_WHOLE, rounded half to even."""
        table = self.arrays[CODEBOOK].astype(np.float32)
        largest = np.abs(table).max(axis=1, keepdims=True)
        factor = np.divide(np.float32(LARGEST_WHOLE), largest, out=np.zeros_like(largest), where=largest > 0)
        whole = np.rint(table * factor).astype(np.int16)
        return np.take_along_axis(whole, self.codes().astype(np.intp), axis=1), largest / np.float32(LARGEST_WHOLE)

    def as_stored(self) -> "PackedWeight":
        """The weight with its columns in the order in which they lie: for inputs that were put into that order."""
        arrays = {name: array for name, array in self.arrays.items() if name != COLUMN_ORDER}
        return PackedWeight(replace(self.scheme, sorted_columns=False), self.shape, self.layout, arrays)

    def with_zeros(self) -> "Array | PackedWeight":
        """A weight whose zeros are left out, with them: plain numbers as they are, codes in the canonical layout."""
        if self.scheme.weight.sparsity is None:
            return self
        if self.scheme.weight.numbers.plain:
            return self.codes()
        return self.in_scheme(replace(self.scheme, weight=replace(self.scheme.weight, sparsity=None)))

    def in_scheme(self, scheme: LinearScheme) -> "PackedWeight":
        """The same symmetric codes and scales in the canonical layout of a scheme that has room for them."""
        packed = pack(self.codes(), self.scales(), None, scheme)
        inputs = {name: array for name, array in self.arrays.items() if name.startswith("input_")}
        return replace(packed, arrays={**packed.arrays, **inputs})

    def take_rows(self, ranges: Sequence[tuple[int, int]]) -> "PackedWeight":
        """The rows of half-open ``ranges``, concatenated; one range is a view. Exact.

        UnsupportedError if block scales would have to be cut inside a block.
        """
        total = self.shape[0]
        for start, stop in ranges:
            if not 0 <= start < stop <= total:
                raise ValueError(f"row range [{start}, {stop}) lies outside [0, {total})")
        arrays = self.layout.take_rows(self.arrays, self.scheme, self.shape, ranges)
        rows = sum(stop - start for start, stop in ranges)
        return PackedWeight(self.scheme, (rows, self.shape[1]), self.layout, arrays)

    def check(self, where: str) -> None:
        """CheckpointError naming ``where`` unless arrays have the scheme's types and shapes and sane values.

        Reads scales and zero points, and codes only where a code could be out of range (narrow ints stored as int8).
        """
        self.layout.check(self.arrays, self.scheme, self.shape, where)


def pack(
    codes: Array, scale: Array, zero_point: Array | None, scheme: LinearScheme, layout: WrittenLayout | None = None
) -> PackedWeight:
    """Codes [rows, columns] with their scale and zero point (codec shapes) -> PackedWeight in the canonical layout.

    ``scale`` is rounded to ``scheme.weight.scale_dtype``; codes must have been computed with the rounded scale.
    """
    layout = layout or layout_of(scheme)
    arrays = layout.pack(codes, scale, zero_point, scheme)
    packed = PackedWeight(scheme, (codes.shape[0], codes.shape[1]), layout, arrays)
    packed.check("pack")
    return packed


def pack_learned(codes: Array, table: Array, scheme: LinearScheme) -> PackedWeight:
    """Codes uint8 [rows, columns] into ``table`` bf16 [rows, 2 ** bits] -> PackedWeight of a learned codebook."""
    shape = (codes.shape[0], codes.shape[1])
    arrays = {
        "weight_packed": pack_rows(np.ascontiguousarray(codes), scheme.weight.bits),
        CODEBOOK: np.ascontiguousarray(table),
        "weight_shape": np.array(shape, dtype=np.int64),
    }
    packed = PackedWeight(scheme, shape, layout_of(scheme), arrays)
    packed.check("pack")
    return packed


def quantize_weight(weight: Array, scheme: LinearScheme) -> PackedWeight:
    """Round to nearest: compute_scales, quantize, pack."""
    scale, zero_point = codecs.compute_scales(weight, scheme.weight)
    return pack(codecs.quantize(weight, scheme.weight, scale, zero_point), scale, zero_point, scheme)


def plain_scheme(dtype: np.dtype[Any]) -> LinearScheme:
    """Of plain numbers of this type, two of four of which are zero."""
    name = next(row.name for row in ELEMENTS.values() if row.plain and row.code_type == dtype)
    return LinearScheme(Scheme(cast(ElementName, name), "tensor", scale_dtype="fp32", sparsity=TWO_OF_FOUR.name))


def without_zeros(values: Array) -> PackedWeight:
    """fp32, bf16 or fp16 [rows, columns], of four neighbouring columns at most two other than zero, without the zeros.
    UnsupportedError where there are more."""
    return pack(values, np.ones((1, 1), np.float32), None, plain_scheme(values.dtype))
