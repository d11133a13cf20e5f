# SPDX-License-Identifier: Apache-2.0
"""What an algorithm wants to know about the rows a set of linears reads. A Statistic is a mergeable sum over rows."""

from collections.abc import Callable
from typing import Protocol, Self, TypeVar, cast

import torch

from linnet.compress.units import ELEMENT_S, PRODUCT_S
from linnet.errors import CheckpointError

_PANEL_COLUMNS = 512
"""About so many, all alike: narrow products run at a fraction of the speed of wide ones."""

_SLICE_ROWS = 2048

SAMPLE_ROWS = 256
"""A sample of rows has at least so many, once so many have passed."""

Derived = TypeVar("Derived")


class Statistic(Protocol):
    """One per tap and kind, shared by all linears that read the tap."""

    rows: int

    def add(self, x: torch.Tensor) -> None:
        """Count fp32 [rows, width]."""

    def merge(self, other: Self) -> None:
        """Add the sums of other rows."""


class StatisticKind(Protocol):
    """What makes statistics: their class, or anything that is called with the width of a tap."""

    def __call__(self, width: int, /) -> Statistic:
        """A sum over no rows."""

    def bytes_of(self, width: int) -> int:
        """Memory of one such sum."""

    def work_of(self, width: int) -> float:
        """Predicted seconds to count one row, see units.py."""


class Hessian:
    """H = sum over rows of x x^T: the second derivative of the squared output error of any linear that reads x.

    fp32 [width, width]; only the upper triangle is summed (in panels, in row order), ``matrix`` mirrors it.
    """

    def __init__(self, width: int) -> None:
        self.rows = 0
        self._upper = torch.zeros(width, width)
        self._derived: dict[object, object] = {}

    @classmethod
    def bytes_of(cls, width: int) -> int:
        """See StatisticKind."""
        return 4 * width * width

    @classmethod
    def work_of(cls, width: int) -> float:
        """See StatisticKind: the upper triangle in panels."""
        return 1.5 * width**2 * PRODUCT_S

    def add(self, x: torch.Tensor) -> None:
        """Count fp32 [rows, width]."""
        self._derived.clear()
        width = self._upper.shape[0]
        step = -(-width // max(1, round(width / _PANEL_COLUMNS)))
        for start in range(0, width, step):
            stop = min(start + step, width)
            self._upper[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])
        self.rows += x.shape[0]

    def merge(self, other: Self) -> None:
        """Add the sums of other rows."""
        self._derived.clear()
        self._upper += other._upper
        self.rows += other.rows

    def matrix(self, where: str) -> torch.Tensor:
        """The whole symmetric matrix (a copy). CheckpointError if an activation was NaN or infinite."""
        whole = torch.triu(self._upper)
        whole += torch.triu(self._upper, 1).T
        if not torch.isfinite(torch.diagonal(whole)).all() or not torch.isfinite(whole.sum()):
            raise CheckpointError(f"the activations that {where} reads hold NaN or infinity on the calibration rows")
        return whole

    def derived(self, key: object, make: Callable[[], Derived]) -> Derived:
        """Something computed once from the finished sum and shared by the linears that read the tap."""
        if key not in self._derived:
            self._derived[key] = make()
        return cast("Derived", self._derived[key])

    def quadratic(self, difference: torch.Tensor) -> float:
        """sum over rows r of d_r H d_r^T: the summed squared output error of a weight change [rows, width]."""
        half = torch.triu(self._upper)
        torch.diagonal(half).mul_(0.5)
        total = 0.0
        for start in range(0, len(difference), _SLICE_ROWS):  # so that no second copy of a large weight is made
            part = difference[start : start + _SLICE_ROWS]
            total += float((part @ half).mul_(part).sum(dtype=torch.float64))
        return 2 * total


class ColumnMagnitude:
    """The greatest and the mean absolute value of every column."""

    def __init__(self, width: int) -> None:
        self.rows = 0
        self.greatest = torch.zeros(width)
        self._total = torch.zeros(width, dtype=torch.float64)

    @classmethod
    def bytes_of(cls, width: int) -> int:
        """See StatisticKind."""
        return 12 * width

    @classmethod
    def work_of(cls, width: int) -> float:
        """See StatisticKind."""
        return 2 * width * ELEMENT_S

    def add(self, x: torch.Tensor) -> None:
        """Count fp32 [rows, width]."""
        if len(x):
            sizes = x.abs()
            self.greatest = torch.maximum(self.greatest, sizes.amax(dim=0))
            self._total += sizes.sum(dim=0, dtype=torch.float64)
            self.rows += len(x)

    def merge(self, other: Self) -> None:
        """Add the sums of other rows."""
        self.greatest = torch.maximum(self.greatest, other.greatest)
        self._total += other._total
        self.rows += other.rows

    @property
    def mean(self) -> torch.Tensor:
        """fp32 [width]; zeros if there were no rows."""
        return (self._total / max(self.rows, 1)).float()


class ColumnSquares:
    """The mean square of every column."""

    def __init__(self, width: int) -> None:
        self.rows = 0
        self._total = torch.zeros(width, dtype=torch.float64)

    @classmethod
    def bytes_of(cls, width: int) -> int:
        """See StatisticKind."""
        return 8 * width

    @classmethod
    def work_of(cls, width: int) -> float:
        """See StatisticKind."""
        return 2 * width * ELEMENT_S

    def add(self, x: torch.Tensor) -> None:
        """Count fp32 [rows, width]."""
        self._total += x.square().sum(dim=0, dtype=torch.float64)
        self.rows += len(x)

    def merge(self, other: Self) -> None:
        """Add the sums of other rows."""
        self._total += other._total
        self.rows += other.rows

    @property
    def root_mean(self) -> torch.Tensor:
        """fp32 [width]: the root of the mean square; zeros if there were no rows."""
        return (self._total / max(self.rows, 1)).sqrt().float()


class RowSample:
    """Every n-th row, for what cannot be said in sums; n doubles so that fewer than 2 * SAMPLE_ROWS are kept."""

    def __init__(self, width: int) -> None:
        self.rows = 0
        self._kept, self._stride = torch.empty(0, width), 1

    @classmethod
    def bytes_of(cls, width: int) -> int:
        """See StatisticKind."""
        return 4 * width * 2 * SAMPLE_ROWS

    @classmethod
    def work_of(cls, width: int) -> float:
        """See StatisticKind: few rows are copied."""
        return 0.1 * width * ELEMENT_S

    @property
    def values(self) -> torch.Tensor:
        """fp32 [kept rows, width]."""
        return self._kept

    def add(self, x: torch.Tensor) -> None:
        """Count fp32 [rows, width]."""
        self._kept = torch.cat([self._kept, x[-self.rows % self._stride :: self._stride]])
        self.rows += len(x)
        self._thin(self._stride)

    def merge(self, other: Self) -> None:
        """Add the rows of another sample, both at the wider stride."""
        stride = max(self._stride, other._stride)
        self._thin(stride)
        self._kept = torch.cat([self._kept, other._kept[:: stride // other._stride]])
        self.rows += other.rows
        self._thin(stride)

    def _thin(self, stride: int) -> None:
        while self._stride < stride or len(self._kept) >= 2 * SAMPLE_ROWS:
            self._kept = self._kept[::2].clone()
            self._stride *= 2
