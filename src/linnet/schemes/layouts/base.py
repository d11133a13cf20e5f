# SPDX-License-Identifier: Apache-2.0
"""What a form in which a quantised weight lies must be able to say; ``PackedWeight`` asks, and holds the arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.schemes.gguf_blocks import BlockScales
from linnet.schemes.scheme import LinearScheme

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Shape = tuple[int, int]
RowRanges = Sequence[tuple[int, int]]
"""Half-open, each within the rows; concatenated in order."""

STORED_TYPES: dict[str, np.dtype[Any]] = {
    "uint8": np.dtype(np.uint8),
    "int8": np.dtype(np.int8),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
    "fp8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies on disk; dtype names as in ``TensorInfo``."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return STORED_TYPES[self.dtype].itemsize * prod(self.shape)


class Layout(Protocol):
    """One form on disk of a linear [rows, columns] with a scheme. Stateless; arrays go by names relative to the module.

    All methods but ``check`` may take for granted that ``check`` passed.
    """

    @property
    def name(self) -> str:
        """What config records call it."""

    def stored(self, scheme: LinearScheme, shape: Shape) -> dict[str, StoredTensor]:
        """Name -> type and shape of every array. ConfigError if the scheme's groups do not divide the columns."""

    def codes(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """[rows, columns] of the element's ``code_type`` (from 0 where the scheme has a minimum: bytes)."""

    def scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array:
        """fp32 in the shape of ``codecs.scale_shape``."""

    def zero_points(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array | None:
        """int8 in the shape of ``scales``; None where the scheme has none."""

    def minimums(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> Array | None:
        """fp32 in the shape of ``scales``; None where the scheme has none."""

    def stored_scales(self, arrays: Arrays, scheme: LinearScheme, shape: Shape) -> BlockScales | None:
        """Scales and minimums of both levels as stored, for a scheme that has minimums or two levels; else None."""

    def take_rows(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, ranges: RowRanges) -> dict[str, Array]:
        """The arrays of those rows. Exact; one range is a view where rows lie apart. UnsupportedError where scales
        would have to be cut."""

    def check(self, arrays: Arrays, scheme: LinearScheme, shape: Shape, where: str) -> None:
        """CheckpointError naming ``where`` unless types and shapes are those of ``stored`` and values are sane."""


class WrittenLayout(Layout, Protocol):
    """A layout that weights are also put into."""

    def pack(self, codes: Array, scale: Array, zero_point: Array | None, scheme: LinearScheme) -> dict[str, Array]:
        """Arrays for codes [rows, columns] with their scale and zero point (codec shapes).

        ``scale`` is rounded to ``scheme.weight.scale_dtype``; codes must have been computed with the rounded scale.
        """


def take(array: Array, ranges: RowRanges) -> Array:
    """Rows of an array; one range is a view."""
    if len(ranges) == 1:
        return array[ranges[0][0] : ranges[0][1]]
    return np.concatenate([array[start:stop] for start, stop in ranges])
