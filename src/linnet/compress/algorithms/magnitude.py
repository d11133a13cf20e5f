# SPDX-License-Identifier: Apache-2.0
"""Pruning by magnitude: the smallest weights become zero. Data-free; the baseline of every other criterion.

Element by element the l1 and the l2 norm order weights alike, so there is nothing to choose between them.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch

from linnet.compress.masks import Among, greatest
from linnet.compress.sparsifier import SparsifyOptions
from linnet.compress.statistic import Statistic, StatisticKind
from linnet.compress.units import ROUNDED_S
from linnet.schemes.sparsity import parse_pattern


class MagnitudeOptions(SparsifyOptions, frozen=True, forbid_unknown_fields=True):
    """``among``: weights of an unstructured pattern compete in their row, or in the whole layer."""

    among: Among = "layer"


class Magnitude:
    """Keeps the greatest weights."""

    Options: ClassVar[type] = MagnitudeOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {}

    def __init__(self, options: MagnitudeOptions) -> None:
        self.pattern, self.shares = parse_pattern(options.pattern), options.shares
        self._among = options.among

    def sparsify(
        self,
        where: str,
        weight: torch.Tensor,
        statistics: Mapping[str, Statistic],
        tick: Callable[[float], None],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Sparsifier.sparsify."""
        kept = greatest(weight.abs(), self.pattern, self._among)
        tick(1.0)
        return weight * kept, kept

    def sparsify_bytes(self, shape: tuple[int, int]) -> int:
        """Scores and, of an unstructured pattern, their order."""
        return shape[0] * shape[1] * (4 + 8)

    def work(self, shape: tuple[int, int]) -> float:
        """Every element is compared with a few others."""
        return ROUNDED_S * shape[0] * shape[1]
