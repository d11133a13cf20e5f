# SPDX-License-Identifier: Apache-2.0
"""LQER: a term of low rank beside the codes, from the SVD of their error scaled by the inputs' magnitude.

Zhang et al. 2024, "LQER: Low-Rank Quantization Error Reconstruction for LLMs", section 3.2 (L2QER).
"""

from collections.abc import Mapping
from typing import ClassVar

import torch

from linnet.compress.low_rank import Closest, RepairOptions
from linnet.compress.statistic import ColumnMagnitude, Statistic, StatisticKind


class Lqer(Closest):
    """A factor for every column."""

    Options: ClassVar[type] = RepairOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"magnitude": ColumnMagnitude}

    def cost_factor(self, where: str, statistics: Mapping[str, Statistic]) -> torch.Tensor:
        """See Closest.cost_factor."""
        magnitude = statistics["magnitude"]
        assert isinstance(magnitude, ColumnMagnitude)
        return magnitude.mean
