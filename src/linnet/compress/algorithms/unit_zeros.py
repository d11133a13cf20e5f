# SPDX-License-Identifier: Apache-2.0
"""Structured pruning by zeros: a unit whose value is seldom anything but zero matters little.

Hu et al. 2016, "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures", eq. 1:
the average percentage of zeros (APoZ), of a ReLU's outputs. Behind a gate nothing is exactly zero: what is small
against the other columns of its row counts as such (ours).
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import torch

from linnet.compress.dependency import UnitGroup, UnitKind
from linnet.compress.importance import PruneOptions
from linnet.compress.statistic import Statistic, StatisticKind
from linnet.compress.units import ELEMENT_S
from linnet.errors import ConfigError


class UnitZerosOptions(PruneOptions, frozen=True, forbid_unknown_fields=True):
    """``below``: a value counts as zero up to this fraction of the root mean square of its row; 0: only zeros count."""

    below: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.below < float("inf"):
            raise ConfigError(f"below of zeros is {self.below}; accepted is 0 or more")


class UnitZeros:
    """The share of rows on which a unit's columns are not zero."""

    Options: ClassVar[type] = UnitZerosOptions
    kinds: ClassVar[tuple[UnitKind, ...]] = ("neurons", "heads", "kv_groups")
    salience: ClassVar[bool] = False

    def __init__(self, options: UnitZerosOptions) -> None:
        self.options = options
        self.statistics: Mapping[str, StatisticKind] = {"alive": AliveKind(options.below)}

    def scores(
        self, group: UnitGroup, tensor: Callable[[str], torch.Tensor], statistics: Mapping[str, Statistic]
    ) -> torch.Tensor:
        """See Importance.scores."""
        alive = statistics["alive"]
        assert isinstance(alive, Alive)
        return alive.share[torch.from_numpy(group.columns)].mean(dim=1)


class Alive:
    """How often every column is more than ``below`` of its row's root mean square."""

    def __init__(self, width: int, below: float) -> None:
        self.rows, self._below = 0, below
        self._counts = torch.zeros(width, dtype=torch.int64)

    @property
    def share(self) -> torch.Tensor:
        """fp32 [width]; zeros if there were no rows."""
        return self._counts.float() / max(self.rows, 1)

    def add(self, x: torch.Tensor) -> None:
        """Count fp32 [rows, width]."""
        bound = self._below * x.square().mean(dim=1, keepdim=True).sqrt()
        self._counts += (x.abs() > bound).sum(dim=0)
        self.rows += len(x)

    def merge(self, other: Self) -> None:
        """Add the counts of other rows."""
        self._counts += other._counts
        self.rows += other.rows


class AliveKind:
    """Makes such counts."""

    def __init__(self, below: float) -> None:
        self._below = below

    def __call__(self, width: int) -> Alive:
        """See StatisticKind."""
        return Alive(width, self._below)

    def bytes_of(self, width: int) -> int:
        """See StatisticKind."""
        return 8 * width

    def work_of(self, width: int) -> float:
        """See StatisticKind."""
        return 3 * width * ELEMENT_S
