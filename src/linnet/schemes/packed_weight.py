# SPDX-License-Identifier: Apache-2.0
"""A quantised weight as one value: its scheme, its canonical arrays, its logical shape.

``dequantize`` defines what a scheme means; every kernel is measured against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.schemes import codecs
from linnet.schemes.layout import Layout, layout_of, stored_tensors
from linnet.schemes.packing import pack_rows, unpack_rows
from linnet.schemes.scheme import LinearScheme

Array = npt.NDArray[Any]

_DTYPES: dict[str, np.dtype[Any]] = {
    **codecs.FLOAT_DTYPES,
    "int8": np.dtype(np.int8),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "fp8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
}


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """``arrays`` maps canonical names (``weight_packed``, ``weight_scale`` ...) to arrays, usually mapped views.

    ``shape`` is the logical [rows, columns]. Unsigned codes lie in ``weight_packed`` (code + 2 ** (bits - 1)).
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
        """[rows, columns]: int8 signed codes; codebooks: uint8 indices; fp8: float8_e4m3fn values."""
        weight = self.scheme.weight
        if "weight" in self.arrays:
            return self.arrays["weight"]
        indices = weight.element in codecs.CODEBOOKS
        offset = 0 if indices else 2 ** (weight.bits - 1)
        codes = unpack_rows(self.arrays["weight_packed"], weight.bits, self.shape[1], offset)
        return codes.view(np.uint8) if indices else codes

    def scales(self) -> Array:
        """fp32 scales: [1, 1], [rows, 1], [rows, groups] or [row blocks, column blocks]."""
        stored = self.arrays["weight_scale"].astype(np.float32)
        return stored.reshape(codecs.scale_shape(self.scheme.weight, self.shape))

    def zero_points(self) -> Array | None:
        """int8 zero points in the shape of ``scales()``; None if symmetric."""
        stored = self.arrays.get("weight_zero_point")
        if stored is None:
            return None
        shape = codecs.scale_shape(self.scheme.weight, self.shape)
        if stored.dtype == np.int32:  # packed along the rows
            bits = self.scheme.weight.bits
            return np.ascontiguousarray(unpack_rows(stored.T, bits, shape[0], 2 ** (bits - 1)).T)
        return stored.reshape(shape)

    def dequantize(self) -> Array:
        """fp32 [rows, columns]: (code - zero point) * scale; for codebooks, the table's value times the scale."""
        return codecs.dequantize(self.codes(), self.scheme.weight, self.scales(), self.zero_points())

    def take_rows(self, ranges: Sequence[tuple[int, int]]) -> "PackedWeight":
        """The rows of half-open ``ranges``, concatenated; one range is a view. Exact.

        UnsupportedError if block scales would have to be cut inside a block.
        """
        total = self.shape[0]
        for start, stop in ranges:
            if not 0 <= start < stop <= total:
                raise ValueError(f"row range [{start}, {stop}) lies outside [0, {total})")
        weight = self.scheme.weight
        rows = sum(stop - start for start, stop in ranges)
        arrays: dict[str, Array] = {}
        for name, array in self.arrays.items():
            if name in ("weight", "weight_packed"):
                arrays[name] = _take(array, ranges)
            elif name == "weight_shape":
                arrays[name] = np.array([rows, self.shape[1]], dtype=np.int64)
            elif name == "weight_zero_point" and array.dtype == np.int32:
                zero_points = self.zero_points()
                assert zero_points is not None
                arrays[name] = _pack_zero_point(_take(zero_points, ranges), weight.bits)
            elif name.startswith("input_") or weight.granularity == "tensor":
                arrays[name] = array
            elif weight.block is not None:
                arrays[name] = _take(array, _block_ranges(ranges, weight.block[0], total))
            else:
                arrays[name] = _take(array, ranges)
        return PackedWeight(self.scheme, (rows, self.shape[1]), self.layout, arrays)

    def check(self, where: str) -> None:
        """CheckpointError naming ``where`` unless arrays have the scheme's types and shapes and sane values.

        Reads scales and zero points, and codes only where a code could be out of range (narrow ints stored as int8).
        """
        expected = stored_tensors(self.scheme, self.shape, self.layout)
        for name, stored in expected.items():
            array = self.arrays.get(name)
            if array is None:
                raise CheckpointError(f"{where}.{name} is missing, its scheme needs it")
            if array.dtype != _DTYPES[stored.dtype] or array.shape != stored.shape:
                raise CheckpointError(
                    f"{where}.{name} is {array.dtype} {list(array.shape)}, its scheme needs "
                    f"{stored.dtype} {list(stored.shape)}"
                )
        if not np.isfinite(self.arrays["weight_scale"].astype(np.float32)).all():
            raise CheckpointError(f"{where}.weight_scale holds NaN or infinity")
        smallest, largest = codecs.code_range(self.scheme.weight)
        for name in ("weight_zero_point", "weight"):
            array = self.arrays.get(name)
            if array is None or array.dtype != np.int8 or (self.scheme.weight.bits == 8 and name == "weight"):
                continue
            low, high = int(array.min()), int(array.max())
            if low < smallest or high > largest:
                value = low if low < smallest else high
                raise CheckpointError(f"{where}.{name} holds {value}, out of range [{smallest:.0f}, {largest:.0f}]")


def _take(array: Array, ranges: Sequence[tuple[int, int]]) -> Array:
    if len(ranges) == 1:
        return array[ranges[0][0] : ranges[0][1]]
    return np.concatenate([array[start:stop] for start, stop in ranges])


def _block_ranges(ranges: Sequence[tuple[int, int]], height: int, total: int) -> list[tuple[int, int]]:
    for position, (start, stop) in enumerate(ranges):
        last = position == len(ranges) - 1
        if start % height or (stop % height and not (last and stop == total)):
            raise UnsupportedError(f"rows [{start}, {stop}) cut a block of {height} rows that shares one scale")
    return [(start // height, -(-stop // height)) for start, stop in ranges]


def _pack_zero_point(zero_point: Array, bits: int) -> Array:
    unsigned = (zero_point.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return np.ascontiguousarray(pack_rows(np.ascontiguousarray(unsigned.T), bits).T)


def pack(
    codes: Array, scale: Array, zero_point: Array | None, scheme: LinearScheme, layout: Layout | None = None
) -> PackedWeight:
    """Codes [rows, columns] with their scale and zero point (codec shapes) -> PackedWeight in the canonical layout.

    ``scale`` is rounded to ``scheme.weight.scale_dtype``; codes must have been computed with the rounded scale.
    """
    weight = scheme.weight
    rows, columns = codes.shape
    layout = layout or layout_of(scheme)
    expected = stored_tensors(scheme, (rows, columns), layout)
    dtype = codecs.FLOAT_DTYPES[weight.scale_dtype]
    arrays: dict[str, Array] = {}
    if layout in ("int-quantized", "float-quantized"):
        arrays["weight"] = np.ascontiguousarray(codes)
    elif weight.element in codecs.CODEBOOKS:
        arrays["weight_packed"] = pack_rows(codes, weight.bits)
    else:
        unsigned = codes.view(np.uint8) + np.uint8(2 ** (weight.bits - 1))
        arrays["weight_packed"] = pack_rows(unsigned, weight.bits)
    arrays["weight_scale"] = np.ascontiguousarray(scale.astype(dtype).reshape(expected["weight_scale"].shape))
    if not weight.symmetric:
        if zero_point is None:
            raise ValueError("an asymmetric scheme needs a zero point")
        stored = expected["weight_zero_point"]
        if stored.dtype == "int32":
            arrays["weight_zero_point"] = _pack_zero_point(zero_point, weight.bits)
        else:
            arrays["weight_zero_point"] = np.ascontiguousarray(zero_point.astype(np.int8).reshape(stored.shape))
    if "weight_shape" in expected:
        arrays["weight_shape"] = np.array([rows, columns], dtype=np.int64)
    packed = PackedWeight(scheme, (rows, columns), layout, arrays)
    packed.check("pack")
    return packed


def quantize_weight(weight: Array, scheme: LinearScheme) -> PackedWeight:
    """Round to nearest: compute_scales, quantize, pack."""
    scale, zero_point = codecs.compute_scales(weight, scheme.weight)
    return pack(codecs.quantize(weight, scheme.weight, scale, zero_point), scale, zero_point, scheme)
