# SPDX-License-Identifier: Apache-2.0
"""Structured pruning by what units say: how much of the outputs' energy comes through a unit's own columns.

Wanda's product (Sun et al. 2023, eq. 1: |w_ij| ||x_j||) squared and summed over all that reads the unit, as An et al.
2023, "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (FLAP), do with the variance of x_j in
place of its mean square; here it is the mean square, since no bias takes over what the mean did.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch

from linnet.compress.dependency import UnitGroup, UnitKind
from linnet.compress.importance import PruneOptions
from linnet.compress.statistic import ColumnSquares, Statistic, StatisticKind


class UnitWandaOptions(PruneOptions, frozen=True, forbid_unknown_fields=True):
    """Nothing more to choose."""


class UnitWanda:
    """The root of sum over the unit's columns j of ||W_:j||^2 times the mean square of x_j."""

    Options: ClassVar[type] = UnitWandaOptions
    kinds: ClassVar[tuple[UnitKind, ...]] = ("neurons", "heads", "kv_groups")
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"squares": ColumnSquares}
    salience: ClassVar[bool] = False

    def __init__(self, options: UnitWandaOptions) -> None:
        self.options = options

    def scores(
        self, group: UnitGroup, tensor: Callable[[str], torch.Tensor], statistics: Mapping[str, Statistic]
    ) -> torch.Tensor:
        """See Importance.scores."""
        squares = statistics["squares"]
        assert isinstance(squares, ColumnSquares)
        loudness = squares.root_mean.square()[torch.from_numpy(group.columns)]
        total = torch.zeros(len(group.columns))
        for part in group.readers:
            columns = tensor(part.tensor).square().sum(dim=0)
            total += (columns[torch.from_numpy(part.indices)] * loudness).sum(dim=1)
        return total.sqrt()
