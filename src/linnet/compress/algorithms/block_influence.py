# SPDX-License-Identifier: Apache-2.0
"""Whole layers by block influence: a block that hardly turns the residual stream matters little.

Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", eq. 1:
BI = 1 - mean over tokens of cos(block's input, block's output).
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import torch

from linnet.compress.dependency import UnitGroup, UnitKind
from linnet.compress.importance import PruneOptions
from linnet.compress.statistic import Statistic, StatisticKind
from linnet.compress.units import ELEMENT_S


class BlockInfluenceOptions(PruneOptions, frozen=True, forbid_unknown_fields=True):
    """Nothing more to choose."""


class Turn:
    """1 - the mean cosine of the two halves of a row, a block's input and its output side by side."""

    def __init__(self, width: int) -> None:
        self.rows, self._half, self._total = 0, width // 2, 0.0

    @classmethod
    def bytes_of(cls, width: int) -> int:
        """See StatisticKind."""
        return 8

    @classmethod
    def work_of(cls, width: int) -> float:
        """See StatisticKind."""
        return 3 * width * ELEMENT_S

    def add(self, x: torch.Tensor) -> None:
        """Count fp32 [rows, width]."""
        cosines = torch.nn.functional.cosine_similarity(x[:, : self._half], x[:, self._half :], dim=1)
        self._total += float(cosines.sum(dtype=torch.float64))
        self.rows += len(x)

    def merge(self, other: Self) -> None:
        """Add the sums of other rows."""
        self._total += other._total
        self.rows += other.rows

    @property
    def influence(self) -> float:
        """0 if every output has its input's direction."""
        return 1 - self._total / max(self.rows, 1)


class BlockInfluence:
    """How far a block turns the residual stream."""

    Options: ClassVar[type] = BlockInfluenceOptions
    kinds: ClassVar[tuple[UnitKind, ...]] = ("layers",)
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"turn": Turn}
    salience: ClassVar[bool] = False

    def __init__(self, options: BlockInfluenceOptions) -> None:
        self.options = options

    def scores(
        self, group: UnitGroup, tensor: Callable[[str], torch.Tensor], statistics: Mapping[str, Statistic]
    ) -> torch.Tensor:
        """See Importance.scores."""
        turn = statistics["turn"]
        assert isinstance(turn, Turn)
        return torch.tensor([turn.influence])
