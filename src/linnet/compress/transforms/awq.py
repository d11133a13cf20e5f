# SPDX-License-Identifier: Apache-2.0
"""AWQ's scales: columns that the activations make important are spread over more of the grid.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", section 3.2:
s_j = mean|x_j|^alpha, alpha by the error of the readers' outputs. No column is moved, so nothing but ordinary weights
is stored. The clipping of section 3.2 belongs to the step that rounds (``algorithms/awq.py``).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from linnet.compress.block import Block
from linnet.compress.folds import Fold
from linnet.compress.statistic import ColumnMagnitude, RowSample, Statistic, StatisticKind
from linnet.compress.transform import FoldKind
from linnet.compress.transforms.scale_search import ScaleSearch, balanced, search_bytes, search_work
from linnet.errors import ConfigError
from linnet.schemes.scheme import LinearScheme


class AwqScalesOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``grid``: how many alphas between 0 and 1 are tried."""

    grid: int = 20

    def __post_init__(self) -> None:
        if not 1 <= self.grid <= 1000:
            raise ConfigError(f"grid of awq is {self.grid}; accepted is 1 to 1000")


class AwqScales:
    """Scales from the mean activations of each column."""

    Options: ClassVar[type] = AwqScalesOptions
    folds: ClassVar[FoldKind] = "columns"
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"magnitude": ColumnMagnitude, "sample": RowSample}

    def __init__(self, options: AwqScalesOptions) -> None:
        self._options = options

    def apply(
        self, block: Block, fold: Fold, schemes: Mapping[str, LinearScheme], statistics: Mapping[str, Statistic]
    ) -> Mapping[str, Any]:
        """See BlockTransform.apply."""
        magnitude, sample = statistics["magnitude"], statistics["sample"]
        assert isinstance(magnitude, ColumnMagnitude)
        assert isinstance(sample, RowSample)
        mean = fold.shared(magnitude.mean)
        alphas = [(step + 1) / self._options.grid for step in range(self._options.grid)]
        search = ScaleSearch(block, fold, schemes, sample.values)
        best, notes = search.best((alpha, balanced(mean**alpha, mean > 0)) for alpha in alphas)
        if best is not None:
            fold.apply(block, best)
        return notes

    def apply_bytes(self, shape: tuple[int, int]) -> int:
        """See ScaleSearch."""
        return search_bytes(shape)

    def work(self, shape: tuple[int, int]) -> float:
        """See ScaleSearch."""
        return search_work(shape, self._options.grid)
