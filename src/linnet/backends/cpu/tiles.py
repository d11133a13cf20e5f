# SPDX-License-Identifier: Apache-2.0
"""Weights that the kernels read as tiles only (csrc/kernels/linear/tiles.h), whatever form they lie in.

A layout says what its codes and scales are; they are unpacked a run of rows at a time, written into tiles, forgotten.
Tiles of 2:4 weights hold two of every four columns (csrc/kernels/linear/sparse.h); which weights are 2:4 their schemes
say.
"""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.backends.cpu import _native
from linnet.schemes.layouts import CODEBOOK, CanonicalLayout, Layout, layout_of, stored_bytes
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.scheme import LinearScheme, Scheme

Array = npt.NDArray[Any]

ROW_STEP = 256
"""Rows are filled in multiples of this: whole units of every tier."""
CHUNK_CODES = 8 << 20
"""Codes that are unpacked at a time, one byte each."""

EIGHT = 8
"""Columns that tiles keep together."""
READ_BITS = (2, 3, 4, 8)
SPARSE_BITS = {3: 4, 4: 4, 8: 8}
"""Bits of integers -> those that 2:4 tiles keep them in."""
SCALES = {"fp32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16), "fp16": np.dtype(np.float16)}
"""What tiles hold scales as. Every e8m0 and every fp8 number is a bf16 number."""
NATIVE_SCALES = {"fp32": _native.ScaleType.fp32, "bf16": _native.ScaleType.bf16, "fp16": _native.ScaleType.fp16}


def lies_as_kernels_read(scheme: Scheme, layout: Layout) -> bool:
    """Whether arrays of this layout are what native kernels read in place."""
    if not isinstance(layout, CanonicalLayout) or scheme.numbers.learned or scheme.scale_dtype not in SCALES:
        return False
    return scheme.numbers.kind == "float" or scheme.bits in READ_BITS


def as_read(isa: str, scheme: LinearScheme, shape: tuple[int, int]) -> LinearScheme:
    """The scheme as which this tier keeps a weight: without its pattern where zeros are put back; codes of few values
    as int2 where their groups are no whole eights of columns, which tiles have no place for."""
    weight = scheme.weight
    if weight.sparsity is not None and not keeps_two_of_four(isa, weight, shape):
        weight = replace(weight, sparsity=None)
    group = weight.columns_per_scale or shape[1]
    if weight.numbers.few and group < shape[1] and group % EIGHT:
        weight = replace(weight, element="int2")
    return replace(scheme, weight=weight)


def as_kept(isa: str, stored: PackedWeight) -> "Array | PackedWeight":
    """The weight in the scheme of ``as_read``; the very one that is stored where they are the same."""
    scheme = as_read(isa, stored.scheme, stored.shape)
    if scheme == stored.scheme:
        return stored
    return stored.with_zeros() if stored.scheme.weight.sparsity is not None else stored.in_scheme(scheme)


def keeps_two_of_four(isa: str, scheme: Scheme, shape: tuple[int, int]) -> bool:
    """Whether this tier multiplies such a 2:4 weight without its zeros; else they are put back when it is loaded."""
    integer = scheme.numbers.integer and scheme.bits in SPARSE_BITS
    if scheme.sparsity is None or not (integer or scheme.element == "bf16"):
        return False
    own = _native_view(scheme, shape, None)
    return _native.refuse_linear(isa, own, _native.InputType.fp32, shape[1]) is None


def weight_bytes(isa: str, scheme: LinearScheme, shape: tuple[int, int], stored: int) -> int:
    """Bytes of a weight as this tier keeps it: the ``stored`` ones where it is read as it lies, else its tiles' or
    those of another form."""
    kept = as_read(isa, scheme, shape)
    if kept.weight.sparsity is None and lies_as_kernels_read(kept.weight, layout_of(kept)):
        return stored if kept == scheme else stored_bytes(kept, shape)
    return int(_native.tile_bytes(isa, _native_view(kept.weight, shape, None)))


def view(stored: PackedWeight, bias: Array | None) -> Any:
    """The native weight of ``stored``, still without tiles; ``bias`` fp32 [rows] must outlive it."""
    return _native_view(stored.scheme.weight, stored.shape, bias)


def _native_view(scheme: Scheme, shape: tuple[int, int], bias: Array | None) -> Any:
    rows, columns = shape
    offsets = _native.Offsets.none
    if not scheme.symmetric:
        offsets = _native.Offsets.minimums if scheme.minimum else _native.Offsets.zero_points
    sparse = scheme.sparsity is not None
    return _native.tiled_weight(
        bits=SPARSE_BITS[scheme.bits] if sparse and scheme.numbers.integer else scheme.bits,
        rows=rows,
        columns=columns,
        group_size=scheme.columns_per_scale or columns,
        super_group_size=scheme.super_group_size or 0,
        offsets=offsets,
        scale_type=NATIVE_SCALES[_scale_type(scheme)],
        bias=bias,
        codebook=scheme.numbers.values,
        row_tables=scheme.numbers.learned,
        two_of_four=sparse,
    )


def fill(isa: str, pool: Any, native: Any, stored: PackedWeight, target: Array) -> None:
    """Write the tiles of ``native``, a ``view`` of ``stored``: uint8 [tile bytes]."""
    rows, columns = stored.shape
    step = max(ROW_STEP, CHUNK_CODES // columns // ROW_STEP * ROW_STEP)
    for first in range(0, rows, step):
        part = _rows(stored, first, min(rows, first + step))
        _native.fill_tiles(isa, pool, native, target, first, *part)


def _rows(stored: PackedWeight, first: int, last: int) -> tuple[Array, Array, Array | None, Array | None, Array | None]:
    """Codes, scales, zero points or minimums, codes of scales and of minimums of rows [first, last), as bytes."""
    scheme, kind = stored.scheme.weight, SCALES[_scale_type(stored.scheme.weight)]
    if scheme.block is not None:  # which rows may cut
        codes = stored.codes()[first:last]
        blocks = np.arange(first, last) // scheme.block[0]
        return (
            _as_bytes(codes).reshape(last - first, -1),
            _as_bytes(stored.scales()[blocks].astype(kind)),
            None,
            None,
            None,
        )
    part = stored.take_rows([(first, last)])
    codes = _as_bytes(part.codes()).reshape(last - first, -1)
    if scheme.numbers.learned:  # in place of scales
        return codes, _as_bytes(part.arrays[CODEBOOK].astype(kind)), None, None, None
    if scheme.numbers.plain:
        return codes, np.empty(0, np.uint8), None, None, None
    levels = part.stored_scales()
    if levels is None:
        wide = (last - first, -(-stored.shape[1] // (scheme.columns_per_scale or stored.shape[1])))
        zero_points = part.zero_points()
        if zero_points is not None:
            zero_points = _as_bytes(np.broadcast_to(zero_points, wide))
        return codes, _as_bytes(np.broadcast_to(part.scales().astype(kind), wide)), zero_points, None, None
    return (
        codes,
        _as_bytes(levels.scale.astype(kind)),
        None if levels.minimum is None else _as_bytes(levels.minimum.astype(kind)),
        None if levels.scale_codes is None else _as_bytes(levels.scale_codes),
        None if levels.minimum_codes is None else _as_bytes(levels.minimum_codes),
    )


def _scale_type(scheme: Scheme) -> str:
    kind = scheme.scale_dtype
    return kind if kind in SCALES else "bf16"


def _as_bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
