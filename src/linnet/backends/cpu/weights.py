# SPDX-License-Identifier: Apache-2.0
"""Weights as the native kernels see them: addresses of the mapped canonical arrays plus small side tables.

Nothing large is copied. Copies are made of: biases and norm gains (fp32), zero points (unpacked to int8), block scales
(one per row), and a weight whose source is not contiguous (transposed, or rows gathered from several ranges). What lies
in another form than the canonical ones (GGUF's blocks, for instance) is read as tiles only: see tiles.py.
"""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.backends.cpu import _native, tiles
from linnet.backends.interface import Source
from linnet.errors import UnsupportedError
from linnet.program.program import Program, Weight
from linnet.schemes.packed_weight import PackedWeight

Array = npt.NDArray[Any]

DENSE_STORAGE = {
    np.dtype(np.float32): (_native.Storage.fp32, 32),
    np.dtype(ml_dtypes.bfloat16): (_native.Storage.bf16, 16),
    np.dtype(np.float16): (_native.Storage.fp16, 16),
}
SCALE_TYPES = {
    np.dtype(np.float32): _native.ScaleType.fp32,
    np.dtype(ml_dtypes.bfloat16): _native.ScaleType.bf16,
    np.dtype(np.float16): _native.ScaleType.fp16,
}


class WeightTable:
    """Loads a program's weights from its source; keeps every array alive that native code points into. ``isa``: the
    tier that will read them."""

    def __init__(self, program: Program, source: Source, isa: str) -> None:
        self._declared: dict[str, Weight] = {weight.name: weight for weight in program.weights}
        self._source, self._isa = source, isa
        self._alive: list[Array] = []
        self._loaded: dict[str, Array | PackedWeight] = {}
        self._tiled: dict[int, tuple[Any, PackedWeight]] = {}  # by the view's identity, which it keeps

    def linear(self, name: str, bias: str | None = None) -> Any:
        """The native view of weight ``name`` [rows, columns], with an optional bias [rows] added after the sum."""
        stored = self._get(name)
        added = None if bias is None else self.vector(bias)
        return (
            self._packed(name, stored, added) if isinstance(stored, PackedWeight) else self._dense(name, stored, added)
        )

    def vector(self, name: str) -> Array:
        """A small weight (gain, bias) as contiguous fp32."""
        stored = self._get(name)
        if isinstance(stored, PackedWeight):
            raise UnsupportedError(f"weight {name} is quantised; gains and biases are read dense only")
        return self.keep(np.ascontiguousarray(stored.reshape(-1), dtype=np.float32))

    def order(self, name: str) -> Array:
        """An order of columns as contiguous int32."""
        stored = self._get(name)
        assert not isinstance(stored, PackedWeight)
        return self.keep(np.ascontiguousarray(stored.reshape(-1), dtype=np.int32))

    def needs_tiles(self, view: Any) -> bool:
        """Whether this native view is nothing without tiles."""
        return id(view) in self._tiled

    def fill_tiles(self, isa: str, pool: Any, view: Any, target: Array) -> None:
        """Write the tiles of a native view that ``linear`` made, uint8 [tile bytes], on every thread of ``pool``."""
        if id(view) in self._tiled:
            return tiles.fill(isa, pool, view, self._tiled[id(view)][1], target)
        _native.make_tiles(isa, pool, view, target)

    def forget_tiled(self) -> None:
        """What tiles were made of is wanted no more by a weight that is nothing but tiles and has them now."""
        made = {id(stored) for _, stored in self._tiled.values()}
        self._loaded = {name: stored for name, stored in self._loaded.items() if id(stored) not in made}
        self._tiled.clear()

    def keep(self, array: Array) -> Array:
        """Remember an array that native code borrows."""
        self._alive.append(array)
        return array

    def _get(self, name: str) -> Array | PackedWeight:
        if name not in self._loaded:
            weight = self._declared[name]
            stored = self._source.weight(weight.ref)
            if isinstance(stored, PackedWeight):
                stored = tiles.as_kept(self._isa, stored)
            if tuple(stored.shape) != weight.shape:
                raise UnsupportedError(
                    f"weight {name} has shape {tuple(stored.shape)}; the program says {weight.shape}"
                )
            self._loaded[name] = stored
        return self._loaded[name]

    def _bytes(self, array: Array) -> Array:
        """Flat bytes of an array: a view if it is contiguous."""
        return self.keep(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def _dense(self, name: str, stored: Array, bias: Array | None) -> Any:
        if stored.dtype not in DENSE_STORAGE:
            accepted = ", ".join(str(dtype) for dtype in DENSE_STORAGE)
            raise UnsupportedError(f"weight {name} is stored as {stored.dtype}; dense weights may be {accepted}")
        storage, bits = DENSE_STORAGE[stored.dtype]
        rows, columns = stored.shape
        return _native.linear_weight(
            storage=storage,
            bits=bits,
            rows=rows,
            columns=columns,
            codes=self._bytes(stored),
            code_row_bytes=columns * bits // 8,
            group_size=columns,
            scales=None,
            scale_type=_native.ScaleType.fp32,
            scale_row_stride=0,
            scale_group_stride=0,
            zero_points=None,
            bias=bias,
        )

    def _packed(self, name: str, stored: PackedWeight, bias: Array | None) -> Any:
        scheme, (rows, columns) = stored.scheme.weight, stored.shape
        if stored.scheme.sorted_columns:
            raise UnsupportedError(f"weight {name} has columns in activation order, which only projections can read")
        if not tiles.lies_as_kernels_read(scheme, stored.layout):
            view = tiles.view(stored, bias)
            self._tiled[id(view)] = view, stored
            return view
        if "weight_packed" in stored.arrays:
            codes = stored.arrays["weight_packed"]
            storage = _native.Storage.codebook if scheme.numbers.kind == "codebook" else _native.Storage.packed_int
            bits = scheme.bits
        elif not scheme.numbers.integer:
            codes, storage, bits = stored.arrays["weight"], _native.Storage.fp8_e4m3, 8
        else:
            codes, storage, bits = stored.arrays["weight"], _native.Storage.plain_int8, 8
        scales, zero_points = stored.arrays["weight_scale"], stored.zero_points()
        if scales.dtype not in SCALE_TYPES:
            raise UnsupportedError(f"weight {name} has scales of {scales.dtype}; accepted: bfloat16, float16, float32")
        if scheme.block is not None:
            scales = np.repeat(scales, scheme.block[0], axis=0)[:rows]
            if zero_points is not None:
                zero_points = np.repeat(zero_points, scheme.block[0], axis=0)[:rows]
        group_size = scheme.columns_per_scale or columns
        groups = -(-columns // group_size)
        if zero_points is not None:
            zero_points = np.broadcast_to(zero_points, (rows, groups))
        return _native.linear_weight(
            storage=storage,
            bits=bits,
            rows=rows,
            columns=columns,
            codes=self._bytes(codes),
            code_row_bytes=codes.nbytes // rows,
            group_size=group_size,
            scales=self._bytes(scales),
            scale_type=SCALE_TYPES[scales.dtype],
            scale_row_stride=0 if scheme.granularity == "tensor" else groups,
            scale_group_stride=1,
            zero_points=None if zero_points is None else self._bytes(zero_points),
            bias=bias,
            codebook=scheme.numbers.values,
        )
