# SPDX-License-Identifier: Apache-2.0
"""Wanda: a weight matters as much as it is great and its input loud; the others become zero, none is moved.

Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", eq. 1: |w_ij| * ||x_j||_2,
compared among the weights of one output, or within the groups of N:M.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch

from linnet.compress.masks import Among, greatest
from linnet.compress.sparsifier import SparsifyOptions
from linnet.compress.statistic import ColumnSquares, Statistic, StatisticKind
from linnet.compress.units import ROUNDED_S
from linnet.schemes.sparsity import parse_pattern


class WandaOptions(SparsifyOptions, frozen=True, forbid_unknown_fields=True):
    """``among``: weights of an unstructured pattern compete in their row (as published), or in the whole layer."""

    among: Among = "row"


class Wanda:
    """Keeps the weights of the greatest products with their inputs' norms."""

    Options: ClassVar[type] = WandaOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"squares": ColumnSquares}

    def __init__(self, options: WandaOptions) -> None:
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
        squares = statistics["squares"]
        assert isinstance(squares, ColumnSquares)
        kept = greatest(weight.abs().mul_(squares.root_mean), self.pattern, self._among)
        tick(1.0)
        return weight * kept, kept

    def sparsify_bytes(self, shape: tuple[int, int]) -> int:
        """Scores and, of an unstructured pattern, their order."""
        return shape[0] * shape[1] * (4 + 8)

    def work(self, shape: tuple[int, int]) -> float:
        """Every element is compared with a few others."""
        return ROUNDED_S * shape[0] * shape[1]
