# SPDX-License-Identifier: Apache-2.0
"""What a criterion of structured pruning is: it says how much the units of a dependency group matter."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import msgspec
import torch

from linnet.compress.dependency import UnitGroup, UnitKind
from linnet.compress.statistic import Statistic, StatisticKind
from linnet.errors import ConfigError

MULTIPLE = 64
"""Of the neurons that are kept, unless the recipe says otherwise: every kernel and most group sizes divide it."""


class PruneOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every criterion is asked: ``what`` goes, and how many: ``ratio`` (a share) or ``count``, of the neurons,
    heads and KV groups of each layer, or of all layers. ``multiple``: so many neurons, or a multiple of them, are kept.
    ``leave``: layers that are not to go, counted from 0, or from the end if negative."""

    what: UnitKind
    ratio: float | None = None
    count: int | None = None
    multiple: int = MULTIPLE
    leave: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.count is None):
            raise ConfigError("a prune step takes either ratio (a share, above 0 and below 1) or count (1 or more)")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ConfigError(f"ratio of a prune step is {self.ratio}; accepted is above 0 and below 1")
        if self.count is not None and self.count < 1:
            raise ConfigError(f"count of a prune step is {self.count}; accepted is 1 or more")
        if self.multiple < 1:
            raise ConfigError(f"multiple of a prune step is {self.multiple}; accepted is 1 or more")
        if self.leave and self.what != "layers":
            raise ConfigError(
                f"leave belongs to what: layers; a config has one number for all layers, so {self.what} are pruned "
                "alike in every one"
            )


class Importance(Protocol):
    """Ranks units. Built from its options once per run; holds no state between groups."""

    Options: ClassVar[type]
    kinds: ClassVar[tuple[UnitKind, ...]]
    """Of units that it can rank."""
    salience: ClassVar[bool]
    """Whether it looks at every weight times its gradient of the loss, row by row, by a pass forth and back; the scores
    of all rows are added up."""
    options: Any
    """A PruneOptions."""

    def __init__(self, options: Any) -> None: ...

    @property
    def statistics(self) -> Mapping[str, StatisticKind]:
        """Of a group's values, side by side, as the dense model makes them. Empty: it looks at weights alone."""

    def scores(
        self, group: UnitGroup, tensor: Callable[[str], torch.Tensor], statistics: Mapping[str, Statistic]
    ) -> torch.Tensor:
        """fp32 [units]: those with the least go. ``tensor``: fp32 values of a checkpoint name, not to be written to;
        with ``salience`` each times its gradient."""


def unit_sums(group: UnitGroup, sizes: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """fp64 [units]: the sum of ``sizes`` of a checkpoint name over all parts of each unit."""
    total = torch.zeros(len(group.columns), dtype=torch.float64)
    for part in group.parts:
        own = sizes(part.tensor)
        along = own if own.ndim == 1 else own.sum(dim=1 - part.axis, dtype=torch.float64)
        total += along[torch.from_numpy(part.indices)].sum(dim=1, dtype=torch.float64)
    return total
