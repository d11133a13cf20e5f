# SPDX-License-Identifier: Apache-2.0
"""Structured pruning by magnitude: a unit matters as much as everything that would go with it is great. Data-free.

Li et al. 2016, "Pruning Filters for Efficient ConvNets", section 3.1 (l1 of what goes); over all parts of the
dependency group, as in Ma, Fang and Wang 2023, "LLM-Pruner", where the sum over parts is one of the ways to aggregate.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch

from linnet.compress.dependency import UnitGroup, UnitKind
from linnet.compress.importance import PruneOptions, unit_sums
from linnet.compress.statistic import Statistic, StatisticKind


class UnitMagnitudeOptions(PruneOptions, frozen=True, forbid_unknown_fields=True):
    """``norm`` of a unit's weights: ``l2`` or ``l1``."""

    norm: Literal["l1", "l2"] = "l2"


class UnitMagnitude:
    """The l1 or l2 norm of all weights of a unit."""

    Options: ClassVar[type] = UnitMagnitudeOptions
    kinds: ClassVar[tuple[UnitKind, ...]] = ("neurons", "heads", "kv_groups", "layers")
    statistics: ClassVar[Mapping[str, StatisticKind]] = {}
    salience: ClassVar[bool] = False

    def __init__(self, options: UnitMagnitudeOptions) -> None:
        self.options, self._power = options, 1 if options.norm == "l1" else 2

    def scores(
        self, group: UnitGroup, tensor: Callable[[str], torch.Tensor], statistics: Mapping[str, Statistic]
    ) -> torch.Tensor:
        """See Importance.scores."""
        total = unit_sums(group, lambda name: tensor(name).abs().pow(self._power))
        return total.pow(1 / self._power).float()
