# SPDX-License-Identifier: Apache-2.0
"""Structured pruning by what the loss would feel: to first order, what goes changes it by the sum of w g.

``unit``: of a whole unit, squared and averaged over rows, so that what it does to one row is not made up for by
another: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", eq. 8. ``weights``: every weight's
own |w g|, added up over the unit, as Ma, Fang and Wang 2023, "LLM-Pruner: On the Structural Pruning of Large Language
Models", section 3.2, have it (their default, "param_first"), here for each row. g is the gradient of a row's next-token
loss.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch

from linnet.compress.dependency import UnitGroup, UnitKind
from linnet.compress.importance import PruneOptions, unit_sums
from linnet.compress.statistic import Statistic, StatisticKind


class UnitTaylorOptions(PruneOptions, frozen=True, forbid_unknown_fields=True):
    """``of``: whether what a ``unit`` does to the loss counts, or what its ``weights`` do, each by itself."""

    of: Literal["unit", "weights"] = "unit"


class UnitTaylor:
    """The square of a unit's sum of w g, or its sum of |w g|; of one row."""

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
        if self.options.of == "weights":
            return unit_sums(group, lambda name: tensor(name).abs()).float()
        return unit_sums(group, tensor).square().float()
