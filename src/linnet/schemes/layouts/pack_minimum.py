# SPDX-License-Identifier: Apache-2.0
"""Integers from 0 with a scale and a minimum per group: what HQQ and optimum-quanto store, in words as canonical ones.

Only in memory: readers make it, no file of ours holds it.
"""

from dataclasses import dataclass

import numpy as np

from linnet.errors import CheckpointError
from linnet.schemes import codecs
from linnet.schemes.gguf_blocks import BlockScales
from linnet.schemes.layouts.base import STORED_TYPES, Array, Arrays, RowRanges, Shape, StoredTensor, take
from linnet.schemes.packing import packed_columns, unpack_rows
from linnet.schemes.scheme import LinearScheme

CODES, SCALES, MINIMUMS = "weight_packed", "weight_scale", "weight_minimum"


@dataclass(frozen=True)
class PackMinimum:
    """``weight_packed`` int32 [rows, words]; ``weight_scale`` and ``weight_minimum`` [rows, groups], both of the
    scheme's ``scale_dtype``. Implements ``Layout`` for schemes with a minimum and one level of scales."""

    name: str = "pack-minimum"

    def stored(self, scheme: LinearScheme, shape: Shape) -> dict[str, StoredTensor]:
        """See Layout.stored."""
        weight = scheme.weight
        scales = StoredTensor(weight.scale_dtype, codecs.scale_shape(weight, shape))
        codes = StoredTensor("int32", (shape[0], packed_columns(shape[1], weight.bits)))
        return {CODES: codes, SCALES: scales, MINIMUMS: scales}

    def codes(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """See Layout.codes."""
        return unpack_rows(arrays[CODES], scheme.weight.bits, shape[1], 0).view(np.uint8)

    def scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """See Layout.scales."""
        return arrays[SCALES].astype(np.float32)

    def zero_points(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> None:
        """The minimum stands in their place."""

    def minimums(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """See Layout.minimums."""
        return arrays[MINIMUMS].astype(np.float32)

    def stored_scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> BlockScales:
        """See Layout.stored_scales."""
        return BlockScales(arrays[SCALES], arrays[MINIMUMS])

    def take_rows(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, ranges: RowRanges) -> dict[str, Array]:
        """See Layout.take_rows."""
        return {name: take(array, ranges) for name, array in arrays.items()}

    def check(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, where: str) -> None:
        """See Layout.check. Every code of its bits has a meaning."""
        for name, stored in self.stored(scheme, shape).items():
            array = arrays[name]
            if array.dtype != STORED_TYPES[stored.dtype] or array.shape != stored.shape:
                raise CheckpointError(
                    f"{where}.{name} is {array.dtype} {list(array.shape)}, its scheme needs {stored.dtype} "
                    f"{list(stored.shape)}"
                )
        for name in (SCALES, MINIMUMS):
            if not np.isfinite(arrays[name].astype(np.float32)).all():
                raise CheckpointError(f"{where}.{name} holds NaN or infinity")


PACK_MINIMUM = PackMinimum()
