# SPDX-License-Identifier: Apache-2.0
"""Structured pruning by what the loss would feel: to first order, a weight that goes changes it by |w g|.

Ma, Fang and Wang 2023, "LLM-Pruner: On the Structural Pruning of Large Language Models", section 3.2, eq. 4 without the
diagonal of the Hessian (their default, "param_first"), added up over everything that would go with the unit; after
Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference". g is the gradient of
the next-token loss on the calibration rows.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch

from linnet.compress.dependency import UnitGroup, UnitKind
from linnet.compress.importance import PruneOptions, unit_sums
from linnet.compress.statistic import Statistic, StatisticKind


class UnitTaylorOptions(PruneOptions, frozen=True, forbid_unknown_fields=True):
    """Nothing more to choose."""


class UnitTaylor:
    """The sum of |w g| over all weights of a unit."""

    Options: ClassVar[type] = UnitTaylorOptions
    kinds: ClassVar[tuple[UnitKind, ...]] = ("neurons", "heads", "kv_groups", "layers")
    statistics: ClassVar[Mapping[str, StatisticKind]] = {}
    salience: ClassVar[bool] = True

    def __init__(self, options: UnitTaylorOptions) -> None:
        self.options = options

    def scores(
        self, group: UnitGroup, tensor: Callable[[str], torch.Tensor], statistics: Mapping[str, Statistic]
    ) -> torch.Tensor:
        """See Importance.scores."""
        return unit_sums(group, lambda name: tensor(name).abs()).float()
