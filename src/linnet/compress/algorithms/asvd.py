# SPDX-License-Identifier: Apache-2.0
"""ASVD: truncated SVD in which an error of a column costs what its inputs' mean magnitude, to a power, says.

Yuan et al. 2023, "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models", section
3.2, without its search for the rank of each layer: ranks are the recipe's.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch

from linnet.compress.low_rank import Closest, FactoriseOptions
from linnet.compress.statistic import ColumnMagnitude, Statistic, StatisticKind
from linnet.errors import ConfigError


class AsvdOptions(FactoriseOptions, frozen=True, forbid_unknown_fields=True):
    """``alpha``: the power, 0.5 as published."""

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha of asvd is {self.alpha}; accepted is 0 to 1")


class Asvd(Closest):
    """A factor for every column."""

    Options: ClassVar[type] = AsvdOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"magnitude": ColumnMagnitude}

    def cost_factor(self, where: str, statistics: Mapping[str, Statistic]) -> torch.Tensor:
        """See Closest.cost_factor."""
        magnitude = statistics["magnitude"]
        assert isinstance(magnitude, ColumnMagnitude)
        mean = magnitude.mean
        floor = float(mean.max()) * 1e-4 or 1.0
        scaled: torch.Tensor = mean.clamp(min=floor) ** self._options.alpha
        return scaled
