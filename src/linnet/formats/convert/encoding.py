# SPDX-License-Identifier: Apache-2.0
"""One weight into one type: which attempt holds it, the bytes, what was lost, and the hash of what it was.

A few rows at a time, several slices at once; the whole of one weight's bytes in memory, never its fp32 numbers.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, UnsupportedError
from linnet.formats.convert.source import SourceTensor, hashable, row_slices, rows_of, values_of
from linnet.formats.convert.types import Attempt
from linnet.schemes import PackedWeight
from linnet.schemes.gguf_blocks import BLOCK_TYPES, dequantize, encode, exact_blocks
from linnet.schemes.layouts.gguf import BLOCKS
from linnet.schemes.packed_weight import COLUMN_ORDER

Array = npt.NDArray[Any]
Weight = Array | PackedWeight
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

PLAIN: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class Converted:
    """What became of one weight. ``sha256`` is over its fp32 numbers before (minus zero counts as zero);
    ``squared_error`` and ``squared_sum`` are sums over all elements."""

    name: str
    shape: tuple[int, ...]
    source: str
    type: str
    nbytes: int
    squared_error: float
    squared_sum: float
    exact: bool
    sha256: str

    @property
    def relative_error(self) -> float:
        """Root of the squared error over root of the squares."""
        return math.sqrt(self.squared_error / self.squared_sum) if self.squared_sum else 0.0


@dataclass(frozen=True)
class _Slice:
    data: Array
    values: Array
    error: float
    power: float
    exact: bool


def convert_weight(
    weight: Weight,
    tensor: SourceTensor,
    attempts: Iterable[Attempt],
    importance: Array | None,
    pool: ThreadPoolExecutor,
    threads: int,
) -> tuple[Converted, Array]:
    """The first attempt that is taken -> what became of the weight, and its bytes in rows: uint8 for blocks.

    UnsupportedError, with the reasons, if none is: exact ones were asked for.
    """
    reasons: dict[str, str] = {}
    for attempt in attempts:
        taken = _try(weight, tensor, attempt, importance, pool, threads)
        if not isinstance(taken, str):
            return taken
        reasons[attempt.type] = taken
    raise UnsupportedError(
        f"{tensor.name} ({tensor.stored}) would lose something; nothing was written",
        [f"{kind}: {reason}" for kind, reason in reasons.items()],
    )


def _try(
    weight: Weight,
    tensor: SourceTensor,
    attempt: Attempt,
    importance: Array | None,
    pool: ThreadPoolExecutor,
    threads: int,
) -> tuple[Converted, Array] | str:
    encoded: list[Array] = []
    digest, error, power, exact = hashlib.sha256(), 0.0, 0.0, True

    def one(bounds: tuple[int, int]) -> _Slice | str:
        return _slice(rows_of(weight, *bounds), tensor, attempt, importance)

    for part in some_at_once(pool, one, row_slices(weight), threads + 1):
        if isinstance(part, str):
            return part
        digest.update(hashable(part.values))
        encoded.append(part.data)
        error, power, exact = error + part.error, power + part.power, exact and part.exact
    data = np.concatenate(encoded) if len(encoded) > 1 else encoded[0]
    made = Converted(
        *(tensor.name, tensor.shape, tensor.stored, attempt.type, data.nbytes, error, power, exact, digest.hexdigest())
    )
    return made, data


def _slice(weight: Weight, tensor: SourceTensor, attempt: Attempt, importance: Array | None) -> _Slice | str:
    values = values_of(weight)
    if tensor.block_type == attempt.type:
        assert isinstance(weight, PackedWeight)
        return _Slice(weight.arrays[BLOCKS], values, 0.0, squares(values), True)
    if attempt.type in PLAIN:
        with np.errstate(over="ignore"):
            data = values.astype(PLAIN[attempt.type])
        after = data.astype(np.float32)
        if not np.isfinite(after).all() and np.isfinite(values).all():
            raise CheckpointError(f"{tensor.name} holds {np.abs(values).max():.3g}, more than {attempt.type} can")
    else:
        kind = BLOCK_TYPES[attempt.type]
        blocks: Array | str
        if attempt.exact and isinstance(weight, PackedWeight):
            numbers = whole_numbers(weight)
            blocks = numbers if isinstance(numbers, str) else exact_blocks(kind, numbers, weight.scales())
            if isinstance(blocks, str):
                return blocks
        else:
            blocks = encode(kind, values, importance)
        data, after = blocks.reshape(len(blocks), -1), dequantize(kind, blocks)
    exact = bool(np.array_equal(after, values))
    if attempt.exact and not exact:
        return "rounding changes its numbers"
    after -= values
    return _Slice(data, values, 0.0 if exact else squares(after), squares(values), exact)


def whole_numbers(weight: PackedWeight) -> Array | str:
    """Codes less their zero points, int16 [rows, columns], to be multiplied by ``scales()``; or why there are none."""
    scheme = weight.scheme.weight
    if not scheme.numbers.integer or scheme.minimum or scheme.granularity not in ("tensor", "channel", "group"):
        return "its numbers are not whole numbers times a scale per group"
    scales = weight.scales()
    if weight.scheme.sorted_columns and scales.shape[1] > 1:
        return "columns that share a scale do not lie side by side (activation order)"
    numbers = weight.codes().astype(np.int16)
    zero_points = weight.zero_points()
    if zero_points is not None:
        numbers -= np.repeat(zero_points, numbers.shape[1] // zero_points.shape[1], axis=1)
    return numbers[:, np.argsort(weight.arrays[COLUMN_ORDER])] if weight.scheme.sorted_columns else numbers


def squares(values: Array) -> float:
    """Their sum, in fp64."""
    return float(np.sum(values * values, dtype=np.float64))


def some_at_once(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Iterator[_Item], most: int
) -> Iterator[_Result]:
    """Results in order, never more than ``most`` begun and not yet taken."""
    running = [pool.submit(function, item) for item in islice(items, most)]
    while running:
        result = running.pop(0).result()
        running.extend(pool.submit(function, item) for item in islice(items, 1))
        yield result
