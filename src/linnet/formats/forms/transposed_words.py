# SPDX-License-Identifier: Apache-2.0
"""Codes packed into int32 words with inputs as rows, as GPTQ and AWQ store them, and the canonical words made of them.

A weight of theirs is [inputs, outputs]; ours is [outputs, inputs]. What a loader turns around it turns once, one module
at a time; the file's own pages are wanted no more after that.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats.forms.base import Tensors
from linnet.schemes import LinearScheme, PackedWeight, Scheme
from linnet.schemes.layouts import PACK_QUANTIZED
from linnet.schemes.layouts.canonical import pack_zero_points
from linnet.schemes.packing import packed_columns

Array = npt.NDArray[Any]
TURNED_AT_ONCE = 256


def turned(array: Array) -> Array:
    """The transpose, contiguous; in strips, so that every line of the cache is read once."""
    out = np.empty(array.shape[::-1], array.dtype)
    for start in range(0, array.shape[0], TURNED_AT_ONCE):
        out[:, start : start + TURNED_AT_ONCE] = array[start : start + TURNED_AT_ONCE].T
    return out


def expect(
    module: str, leaf: str, dtypes: tuple[str, ...], shape: tuple[int, ...], tensors: Tensors, where: str
) -> None:
    """CheckpointError unless the module's tensor ``leaf`` is there with one of these types and this shape."""
    info = tensors.get(f"{module}.{leaf}")
    if info is None:
        raise CheckpointError(f"{where}: {module}.{leaf} is missing, the codes of {module} mean nothing without it")
    if info.dtype not in dtypes or tuple(info.shape) != shape:
        raise CheckpointError(
            f"{where}: {module}.{leaf} is {info.dtype} {list(info.shape)}; its config leads to {' or '.join(dtypes)} "
            f"{list(shape)}"
        )


def canonical(
    words: Array,
    scales: Array,
    zero_points: Array | None,
    scheme: LinearScheme,
    shape: tuple[int, int],
    shown: str,
    column_order: Array | None = None,
) -> PackedWeight:
    """A checked PackedWeight of canonical words [outputs, words], scales and unsigned zero points [outputs, groups].

    ``zero_points`` None: symmetric; ``column_order``: see LinearScheme.sorted_columns.
    """
    weight = scheme.weight
    arrays = {
        "weight_packed": words,
        "weight_scale": scales,
        "weight_shape": np.array(shape, np.int64),
    }
    if zero_points is not None:
        arrays["weight_zero_point"] = pack_zero_points(
            (zero_points.astype(np.int16) - 2 ** (weight.bits - 1)).astype(np.int8), weight.bits
        )
    if column_order is not None:
        arrays["column_order"] = column_order
    packed = PackedWeight(scheme, shape, PACK_QUANTIZED, arrays)
    packed.check(shown)
    return packed


def groups_of(weight: Scheme, columns: int, where: str, module: str) -> int:
    """How many groups the columns make; CheckpointError if they do not divide."""
    size = weight.group_size or columns
    if columns % size:
        raise CheckpointError(f"{where}: {module}: group size {size} does not divide its {columns} columns")
    return columns // size


def words_of(columns: int, bits: int) -> int:
    """Words that hold so many codes."""
    return packed_columns(columns, bits)
