# SPDX-License-Identifier: Apache-2.0
"""What a linear is the sum of: its weight; beside it, or in its place, a product of two narrow matrices; and beside it
columns of more bits for the few inputs that are outliers, or a sparse matrix of what codes got most wrong.

y = W x' + up (down x) + V x[outliers] + S x, where x' is x without its outliers. Each term is stored by itself and
multiplied by itself; what they make together is dense.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.schemes.layouts import stored_bytes
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.scheme import LinearScheme, Scheme

Array = npt.NDArray[Any]

DOWN, UP = "low_rank.down", "low_rank.up"
"""What the two narrow matrices are called, relative to their linear: modules of their own."""
OUTLIERS = "outliers"
"""And the columns of the outliers."""
SPARSE_VALUES, SPARSE_COLUMNS = "sparse.values", "sparse.columns"
"""And the two halves of the sparse matrix."""
CHOSEN, CALM = "outliers.chosen", "outliers.calm"
"""Leaves under which a source gives what follows from the outliers' places, see ``one_hot`` and ``calm_order``."""
COMPUTED = (CHOSEN, CALM)
BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Terms:
    """``whole``: the linear's own weight is there, plain or as codes. ``rank``: of the low-rank term, 0 without one."""

    whole: bool = True
    rank: int = 0
    outliers: tuple[int, ...] = ()
    """Columns, ascending, whose weights are 0 in the linear's own and stand in the term's."""
    sparse: int = 0
    """How many weights of every row the sparse term adds to."""

    def __post_init__(self) -> None:
        if self.rank < 0 or not (self.whole or self.rank):
            raise CheckpointError(f"a linear of no weight and a term of rank {self.rank} is nothing")
        if self.sparse < 0 or (self.sparse and not self.whole):
            raise CheckpointError(f"a sparse term of {self.sparse} weights a row must be of a linear with a weight")
        in_order = list(self.outliers) == sorted({*self.outliers})
        if self.outliers and (not self.whole or self.outliers[0] < 0 or not in_order):
            shown = str(list(self.outliers))[:80]
            raise CheckpointError(f"outliers {shown} must be columns of a weight, each once, ascending")

    @property
    def plain(self) -> bool:
        """Whether the linear is its weight and nothing else."""
        return self == PLAIN


PLAIN = Terms()


UP_INT8 = LinearScheme(Scheme("int8", "tensor"))
DOWN_INT8 = LinearScheme(Scheme("int8", "channel"))
"""How narrow matrices of 8 bits lie: ``up`` is orthonormal, so that one scale does; ``down`` has one for each of its
few rows."""


@dataclass(frozen=True)
class LowRank:
    """``up`` [rows, rank] and ``down`` [rank, columns], bf16 or packed; the term is their product."""

    up: Array | PackedWeight
    down: Array | PackedWeight

    @property
    def rank(self) -> int:
        """How wide the narrow side is."""
        return int(self.down.shape[0])

    def modules(self) -> dict[str, Array | PackedWeight]:
        """By name, relative to the linear."""
        return {DOWN: self.down, UP: self.up}

    def take_rows(self, ranges: Sequence[tuple[int, int]]) -> "LowRank":
        """The term of these rows of the linear alone."""
        if isinstance(self.up, PackedWeight):
            return LowRank(self.up.take_rows(ranges), self.down)
        return LowRank(np.concatenate([self.up[start:stop] for start, stop in ranges]), self.down)

    def product(self) -> Array:
        """fp32 [rows, columns]."""
        product: Array = plain(self.up) @ plain(self.down)
        return product


def plain(stored: Array | PackedWeight) -> Array:
    """What a stored matrix means, fp32."""
    if isinstance(stored, PackedWeight):
        return stored.dequantize()
    values: Array = stored.astype(np.float32)
    return values


@dataclass(frozen=True)
class Outliers:
    """``weight`` bf16 [rows, outliers]: of the ``columns``, ascending, that the linear's own weight leaves out."""

    columns: tuple[int, ...]
    weight: Array

    def modules(self) -> dict[str, Array | PackedWeight]:
        """By name, relative to the linear."""
        return {OUTLIERS: self.weight}


@dataclass(frozen=True)
class Sparse:
    """``values`` bf16 [rows, n] at ``columns`` int32 [rows, n] of their row, ascending: added to the linear's weight.

    Every row has as many, so that rows of a fused tensor are rows of both, and their work is alike.
    """

    values: Array
    columns: Array

    def modules(self) -> dict[str, Array | PackedWeight]:
        """By name, relative to the linear."""
        return {SPARSE_VALUES: self.values, SPARSE_COLUMNS: self.columns}

    def add_to(self, weight: Array, ranges: Sequence[tuple[int, int]] | None = None) -> None:
        """Add it, or these rows of it, to fp32 [rows, columns] in place."""
        rows = np.concatenate([np.arange(*own) for own in ranges or [(0, len(self.values))]])
        weight[np.arange(len(rows))[:, None], self.columns[rows]] += self.values[rows].astype(np.float32)


def sparse_bytes(weights: int, rows: int) -> int:
    """Bytes of a sparse term of so many weights in each of the rows."""
    return rows * weights * (int(BF16.itemsize) + 4)


def one_hot(columns: Sequence[int], width: int) -> Array:
    """fp32 [columns, width]: what multiplies x to give x[columns], exactly."""
    chosen = np.zeros((len(columns), width), np.float32)
    chosen[np.arange(len(columns)), list(columns)] = 1
    return chosen


def calm_order(columns: Sequence[int], width: int) -> Array:
    """int32 [width]: the column that stands in for each, the nearest one before or else after it that is no outlier.

    A copy of a neighbour changes no greatest magnitude of a row, and little of a group; what it is multiplied by is 0.
    """
    order = np.arange(width, dtype=np.int32)
    calm = np.setdiff1d(order, np.array(columns, np.int32))
    before = np.searchsorted(calm, order, side="right") - 1
    taken: Array = calm[np.maximum(before, 0)]
    return taken


def low_rank_bytes(rank: int, shape: tuple[int, int], bits: int) -> int:
    """Bytes of a low-rank term of 16 or 8 bits a number beside a linear [rows, columns]."""
    if bits == 8:
        return stored_bytes(UP_INT8, (shape[0], rank)) + stored_bytes(DOWN_INT8, (rank, shape[1]))
    return rank * (shape[0] + shape[1]) * int(BF16.itemsize)


def break_even(shape: tuple[int, int]) -> float:
    """The rank at which two narrow matrices hold as many numbers as the one [rows, columns] that they stand for."""
    return shape[0] * shape[1] / (shape[0] + shape[1])
