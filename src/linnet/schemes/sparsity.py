# SPDX-License-Identifier: Apache-2.0
"""Which share of a weight is pruned, and in what pattern. Values only, no tensors."""

import re
from dataclasses import dataclass

from linnet.errors import ConfigError

LARGEST_GROUP = 32
"""Of an N:M pattern: scores within a group are compared pair by pair."""


@dataclass(frozen=True)
class SparsityPattern:
    """``kept`` of every ``group`` neighbouring columns of a row; without them ``share`` of the weights is pruned,
    wherever they stand. ``share`` is what is pruned in either case, from 0 to below 1."""

    share: float
    kept: int | None = None
    group: int | None = None

    @property
    def name(self) -> str:
        """As ``parse_pattern`` reads it: ``2:4``, ``50%``, ``dense``."""
        if self.kept is not None:
            return f"{self.kept}:{self.group}"
        return f"{self.share * 100:g}%" if self.share else "dense"

    def pruned(self, count: int) -> int:
        """How many of ``count`` weights that are compared with each other are pruned."""
        return int(count * self.share + 1e-9)

    def check_columns(self, module: str, columns: int) -> None:
        """ConfigError naming the module unless groups divide its columns."""
        if self.group is not None and columns % self.group:
            raise ConfigError(
                f"{module}: the pattern {self.name} does not divide its {columns} columns; give it a rule with a "
                "percentage, or dense"
            )


TWO_OF_FOUR = SparsityPattern(0.5, 2, 4)
"""What processors have instructions for, and files a form without the zeros."""


def parse_pattern(text: str) -> SparsityPattern:
    """``2:4`` (N of M are kept), ``50%`` (pruned), ``dense``. ConfigError says what is accepted."""
    stripped = text.strip().lower()
    if stripped == "dense":
        return SparsityPattern(0.0)
    counts = re.fullmatch(r"([0-9]{1,2}):([0-9]{1,2})", stripped)
    if counts is not None and 1 <= int(counts[1]) < int(counts[2]) <= LARGEST_GROUP:
        kept, group = int(counts[1]), int(counts[2])
        return SparsityPattern(1 - kept / group, kept, group)
    percentage = re.fullmatch(r"([0-9]{1,2}(?:\.[0-9]{1,4})?)%", stripped)
    if percentage is not None and float(percentage[1]) > 0:
        return SparsityPattern(float(percentage[1]) / 100)
    raise ConfigError(
        f"the pattern {text!r:.40} is unknown; accepted: N:M (N of M neighbouring columns are kept, at most "
        f"{LARGEST_GROUP}) such as 2:4, the percentage that is pruned such as 50%, dense"
    )
