# SPDX-License-Identifier: Apache-2.0
"""The canonical layouts: compressed-tensors' own (``pack-quantized``, ``int-quantized``, ``float-quantized``) and, for
what it has no word for, ``linnet`` (docs/FORMAT.md), which packs as ``pack-quantized`` does.

Codes lie in ``weight`` one by one, or in ``weight_packed`` as words of unsigned codes (code + 2 ** (bits - 1)).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from linnet.errors import CheckpointError, UnsupportedError
from linnet.schemes import codecs
from linnet.schemes.groups import check_columns
from linnet.schemes.layouts.base import STORED_TYPES, Array, Arrays, RowRanges, Shape, StoredTensor, take
from linnet.schemes.packing import pack_rows, packed_columns, unpack_rows
from linnet.schemes.scheme import LinearScheme, Scheme

CODES_STAY_IN_BYTES = 8
CODEBOOK = "weight_codebook"
"""Each row's own values, where they are learned."""


@dataclass(frozen=True)
class CanonicalLayout:
    """``packed``: codes in words; else one by one. Implements ``WrittenLayout``."""

    name: str
    packed: bool

    def stored(self, scheme: LinearScheme, shape: Shape) -> dict[str, StoredTensor]:
        """See Layout.stored."""
        weight = scheme.weight
        check_columns("weight", shape[1], weight)
        rows, columns = shape
        scales = stored_scale_shape(weight, shape)
        if weight.numbers.learned:
            return {
                "weight_packed": StoredTensor("int32", (rows, packed_columns(columns, weight.bits))),
                CODEBOOK: StoredTensor("bf16", (rows, 2**weight.bits)),
                "weight_shape": StoredTensor("int64", (2,)),
            }
        if self.packed:
            tensors = {"weight_packed": StoredTensor("int32", (rows, packed_columns(columns, weight.bits)))}
        else:
            tensors = {"weight": StoredTensor("int8" if weight.numbers.integer else weight.element, shape)}
        tensors["weight_scale"] = StoredTensor(weight.scale_dtype, scales)
        if not weight.symmetric:
            if self.name == PACK_QUANTIZED.name and weight.granularity in ("group", "channel"):
                tensors["weight_zero_point"] = StoredTensor("int32", (packed_columns(rows, weight.bits), scales[1]))
            else:
                tensors["weight_zero_point"] = StoredTensor("int8", scales)
        if self.packed:
            tensors["weight_shape"] = StoredTensor("int64", (2,))
        return tensors

    def codes(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """See Layout.codes."""
        if not self.packed:
            return arrays["weight"]
        weight = scheme.weight
        codes = unpack_rows(arrays["weight_packed"], weight.bits, shape[1], code_offset(weight))
        return codes.view(weight.numbers.code_type)

    def scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """See Layout.scales: 1 where tables hold the values themselves."""
        if scheme.weight.numbers.learned:
            return np.ones((shape[0], 1), np.float32)
        return arrays["weight_scale"].astype(np.float32).reshape(codecs.scale_shape(scheme.weight, shape))

    def zero_points(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array | None:
        """See Layout.zero_points."""
        stored = arrays.get("weight_zero_point")
        if stored is None:
            return None
        wanted = codecs.scale_shape(scheme.weight, shape)
        if stored.dtype == np.int32:  # packed along the rows
            bits = scheme.weight.bits
            return np.ascontiguousarray(unpack_rows(stored.T, bits, wanted[0], 2 ** (bits - 1)).T)
        return stored.reshape(wanted)

    def minimums(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array | None:
        """No canonical layout has any."""
        return None

    def stored_scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> None:
        """Every canonical scale stands for itself."""

    def take_rows(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, ranges: RowRanges) -> dict[str, Array]:
        """See Layout.take_rows."""
        weight, rows = scheme.weight, sum(stop - start for start, stop in ranges)
        taken: dict[str, Array] = {}
        for name, array in arrays.items():
            if name in ("weight", "weight_packed"):
                taken[name] = take(array, ranges)
            elif name == "weight_shape":
                taken[name] = np.array([rows, shape[1]], dtype=np.int64)
            elif name == "weight_zero_point" and array.dtype == np.int32:
                zero_points = self.zero_points(arrays, scheme, shape)
                assert zero_points is not None
                taken[name] = pack_zero_points(take(zero_points, ranges), weight.bits)
            elif name.startswith(("input_", "column_")) or weight.granularity == "tensor":
                taken[name] = array
            elif weight.block is not None:
                taken[name] = take(array, _block_ranges(ranges, weight.block[0], shape[0]))
            else:
                taken[name] = take(array, ranges)
        return taken

    def check(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, where: str) -> None:
        """See Layout.check. Reads scales and zero points, and codes only where one could be out of range."""
        values = CODEBOOK if scheme.weight.numbers.learned else "weight_scale"
        check_stored(self.stored(scheme, shape), arrays, values, where)
        smallest, largest = codecs.code_range(scheme.weight)
        for name in ("weight_zero_point", "weight"):
            array = arrays.get(name)
            fills_bytes = scheme.weight.bits == CODES_STAY_IN_BYTES and name == "weight"
            if array is None or array.dtype != np.int8 or fills_bytes:
                continue
            low, high = int(array.min()), int(array.max())
            if low < smallest or high > largest:
                value = low if low < smallest else high
                raise CheckpointError(f"{where}.{name} holds {value}, out of range [{smallest:.0f}, {largest:.0f}]")
            if scheme.weight.numbers.step == 2 and name == "weight" and not array.all():
                raise CheckpointError(f"{where}.{name} holds 0, its codes are {smallest:.0f} and {largest:.0f}")

    def pack(self, codes: Array, scale: Array, zero_point: Array | None, scheme: LinearScheme) -> dict[str, Array]:
        """See WrittenLayout.pack."""
        weight, shape = scheme.weight, (codes.shape[0], codes.shape[1])
        stored = self.stored(scheme, shape)
        if self.packed:
            unsigned = codes.view(np.uint8) + np.uint8(code_offset(weight))
            arrays = {"weight_packed": pack_rows(unsigned, weight.bits)}
        else:
            arrays = {"weight": np.ascontiguousarray(codes)}
        arrays["weight_scale"] = pack_scale(scale, weight, shape)
        if not weight.symmetric:
            if zero_point is None:
                raise ValueError("an asymmetric scheme needs a zero point")
            wanted = stored["weight_zero_point"]
            if wanted.dtype == "int32":
                arrays["weight_zero_point"] = pack_zero_points(zero_point, weight.bits)
            else:
                arrays["weight_zero_point"] = np.ascontiguousarray(zero_point.astype(np.int8).reshape(wanted.shape))
        if self.packed:
            arrays["weight_shape"] = np.array(shape, dtype=np.int64)
        return arrays


PACK_QUANTIZED = CanonicalLayout("pack-quantized", packed=True)
INT_QUANTIZED = CanonicalLayout("int-quantized", packed=False)
FLOAT_QUANTIZED = CanonicalLayout("float-quantized", packed=False)
OWN = CanonicalLayout("linnet", packed=True)


def stored_scale_shape(scheme: Scheme, shape: Shape) -> tuple[int, ...]:
    """On disk a per-tensor scale is [1]; every other shape is the codec's."""
    return (1,) if scheme.granularity == "tensor" else codecs.scale_shape(scheme, shape)


def pack_scale(scale: Array, scheme: Scheme, shape: Shape) -> Array:
    """A scale as it is stored, rounded to its type."""
    rounded = scale.astype(codecs.FLOAT_DTYPES[scheme.scale_dtype])
    return np.ascontiguousarray(rounded.reshape(stored_scale_shape(scheme, shape)))


def check_stored(wanted: Mapping[str, StoredTensor], arrays: Arrays, values: str, where: str) -> None:
    """CheckpointError naming ``where`` unless the arrays have these types and shapes and those of ``values``, where
    there are any, are finite."""
    for name, stored in wanted.items():
        array = arrays.get(name)
        if array is None:
            raise CheckpointError(f"{where}.{name} is missing, its scheme needs it")
        if array.dtype != STORED_TYPES[stored.dtype] or array.shape != stored.shape:
            raise CheckpointError(
                f"{where}.{name} is {array.dtype} {list(array.shape)}, its scheme needs "
                f"{stored.dtype} {list(stored.shape)}"
            )
    if values in arrays and not np.isfinite(arrays[values].astype(np.float32)).all():
        raise CheckpointError(f"{where}.{values} holds NaN or infinity")


def pack_zero_points(zero_point: Array, bits: int) -> Array:
    """int8 [rows, groups] -> int32 [words of rows, groups], as pack-quantized stores them."""
    unsigned = (zero_point.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    return np.ascontiguousarray(pack_rows(np.ascontiguousarray(unsigned.T), bits).T)


def code_offset(weight: Scheme) -> int:
    """What makes a code unsigned; indices are already."""
    return 0 if weight.numbers.kind == "codebook" else 2 ** (weight.bits - 1)


def _block_ranges(ranges: RowRanges, height: int, total: int) -> list[tuple[int, int]]:
    for position, (start, stop) in enumerate(ranges):
        last = position == len(ranges) - 1
        if start % height or (stop % height and not (last and stop == total)):
            raise UnsupportedError(f"rows [{start}, {stop}) cut a block of {height} rows that shares one scale")
    return [(start // height, -(-stop // height)) for start, stop in ranges]
