# SPDX-License-Identifier: Apache-2.0
"""How large the elements of a value are: a histogram of magnitudes, fine enough to choose one scale for all of them."""

from collections.abc import Callable
from typing import Self

import torch

from linnet.compress.rounding import number_range, step_sizes
from linnet.compress.units import ELEMENT_S
from linnet.schemes.scheme import Scheme

_KEPT_BITS = 5
"""Of the fraction: 32 bins from one power of two to the next."""
_BINS = 1 << (8 + _KEPT_BITS)
_SHRINKS = tuple(2.0 ** (-step / 8) for step in range(41))
"""Shares of the greatest magnitude that the search tries: down to a 32nd."""


class Magnitudes:
    """Counts and sums of |x|; bins are the first bits of an fp32 number, so that sums over any rows can be merged."""

    def __init__(self, width: int) -> None:
        self.rows = 0
        self.greatest = 0.0
        self._counts = torch.zeros(_BINS, dtype=torch.int64)
        self._sums = torch.zeros(_BINS, dtype=torch.float64)

    @classmethod
    def bytes_of(cls, width: int) -> int:
        """See StatisticKind."""
        return 16 * _BINS

    @classmethod
    def work_of(cls, width: int) -> float:
        """See StatisticKind."""
        return 8 * width * ELEMENT_S

    def add(self, x: torch.Tensor) -> None:
        """Count fp32 [rows, width]."""
        if not x.numel():
            return
        sizes = x.abs().flatten()
        bins = sizes.view(torch.int32).bitwise_right_shift(23 - _KEPT_BITS).long()
        self._counts += torch.bincount(bins, minlength=_BINS)
        self._sums += torch.bincount(bins, weights=sizes.double(), minlength=_BINS)
        self.greatest = max(self.greatest, float(sizes.max()))
        self.rows += len(x)

    def merge(self, other: Self) -> None:
        """Add the sums of other rows."""
        self._counts += other._counts
        self._sums += other._sums
        self.greatest = max(self.greatest, other.greatest)
        self.rows += other.rows

    def quantile(self, share: float) -> float:
        """A magnitude that ``share`` of all elements do not exceed, to within a bin (3 %)."""
        reached = torch.cumsum(self._counts, 0).double()
        if not self.rows or not reached[-1]:
            return 0.0
        at = int(torch.searchsorted(reached, share * float(reached[-1])))
        edge = torch.tensor((at + 1) << (23 - _KEPT_BITS), dtype=torch.int32).view(torch.float32)
        return min(float(edge), self.greatest)

    def least_squares(self, scheme: Scheme) -> float:
        """Of the greatest magnitude and shares of it, the one that as the end of the range costs the least squared
        error, ties to the wider."""
        error = self._error_of(scheme)
        ends: list[float] = [self.greatest * share for share in _SHRINKS]
        return min(ends, key=error)

    def _error_of(self, scheme: Scheme) -> Callable[[float], float]:
        """The expected squared error of all elements under a range: those inside are off by a twelfth of their step's
        square, or by all of themselves where they become zero."""
        heard = self._counts > 0
        counts, values = self._counts[heard].double(), (self._sums[heard] / self._counts[heard]).float()

        def error(end: float) -> float:
            scale = end / scheme.half_range
            if scale <= 0:
                return 0.0
            largest = number_range(scheme)[1] * scale
            steps = torch.as_tensor(step_sizes(values / scale, scheme)) * scale
            inside = torch.minimum(steps.square() / 12, values.square())
            each = torch.where(values > largest, (values - largest).square().clamp_min(0), inside)
            return float((counts * each.double()).sum())

        return error
