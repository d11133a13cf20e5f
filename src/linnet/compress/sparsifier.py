# SPDX-License-Identifier: Apache-2.0
"""What a sparsifier is: it decides which weights of a linear become zero, and may move the others."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol

import msgspec
import torch

from linnet.compress.statistic import Statistic, StatisticKind
from linnet.errors import ConfigError
from linnet.schemes.sparsity import SparsityPattern, parse_pattern

Shares = Literal["uniform", "outliers"]

MASK_BYTES = 1
"""A weight's place in the mask that its Block keeps."""


class SparsifyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every sparsifier is asked: ``pattern``, ``2:4``, ``50%``, ``dense`` (see schemes/sparsity.py). ``shares`` of
    a percentage: the same for every layer, or by ``outliers`` (see shares.py)."""

    pattern: str = "50%"
    shares: Shares = "uniform"

    def __post_init__(self) -> None:
        pattern = parse_pattern(self.pattern)
        if self.shares != "uniform" and (pattern.kept is not None or not pattern.share):
            raise ConfigError(f"shares by {self.shares} need a percentage such as 50%; the pattern is {self.pattern}")


class Sparsifier(Protocol):
    """Prunes one linear. Built from its options once per run; holds no state between linears."""

    Options: ClassVar[type]
    statistics: ClassVar[Mapping[str, StatisticKind]]
    """Name -> kind; statistics of one name are of one kind, whichever step asks for them."""
    pattern: SparsityPattern
    shares: Shares

    def __init__(self, options: Any) -> None: ...

    def sparsify(
        self,
        where: str,
        weight: torch.Tensor,
        statistics: Mapping[str, Statistic],
        tick: Callable[[float], None],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """fp32 ``weight`` [rows, columns], not to be written to -> new values and what is kept (bool); values are zero
        where nothing is. ``where`` names the module in errors; ``tick(fraction)`` tells progress."""

    def sparsify_bytes(self, shape: tuple[int, int]) -> int:
        """Greatest extra memory, statistics, the weight, its new values and the mask not counted."""

    def work(self, shape: tuple[int, int]) -> float:
        """Predicted seconds, see units.py."""
