# SPDX-License-Identifier: Apache-2.0
"""SmoothQuant: what is hard to round in the activations is moved into the weights.

Xiao et al. 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", eq. 4:
s_j = max|x_j|^alpha / max|w_j|^(1 - alpha). Here alpha may be searched per fold, by the error of the readers' outputs
with weights and activations rounded.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import msgspec
import torch

from linnet.compress.block import Block
from linnet.compress.folds import Fold
from linnet.compress.statistic import ColumnMagnitude, RowSample, Statistic, StatisticKind
from linnet.compress.transform import FoldKind
from linnet.compress.transforms.scale_search import ScaleSearch, balanced, search_bytes, search_work
from linnet.errors import ConfigError
from linnet.schemes.scheme import LinearScheme

ALPHAS = tuple(step / 20 for step in range(21))


class SmoothQuantOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``alpha``: how much of the range moves into the weights, 0 to 1; ``search``: the best of 21 for each fold."""

    alpha: float | Literal["search"] = "search"

    def __post_init__(self) -> None:
        if self.alpha != "search" and not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha of smoothquant is {self.alpha}; accepted is 0 to 1, or search")


class SmoothQuant:
    """Scales from the greatest activations and weights of each column."""

    Options: ClassVar[type] = SmoothQuantOptions
    folds: ClassVar[FoldKind] = "columns"
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"magnitude": ColumnMagnitude, "sample": RowSample}

    def __init__(self, options: SmoothQuantOptions) -> None:
        self._options = options

    def apply(
        self, block: Block, fold: Fold, schemes: Mapping[str, LinearScheme], statistics: Mapping[str, Statistic]
    ) -> Mapping[str, Any]:
        """See BlockTransform.apply."""
        magnitude, sample = statistics["magnitude"], statistics["sample"]
        assert isinstance(magnitude, ColumnMagnitude)
        assert isinstance(sample, RowSample)
        search = ScaleSearch(block, fold, schemes, sample.values)
        activations, weights = fold.shared(magnitude.greatest), fold.shared(search.greatest_weights)
        live = (activations > 0) & (weights > 0)

        def scales(alpha: float) -> torch.Tensor:
            return balanced(activations**alpha / weights.clamp(min=1e-20) ** (1 - alpha), live)

        alphas = ALPHAS if self._options.alpha == "search" else (self._options.alpha,)
        best, notes = search.best((alpha, scales(alpha)) for alpha in alphas)
        if self._options.alpha != "search":
            best, notes = scales(self._options.alpha), {**notes, "alpha": self._options.alpha}
        if best is not None:
            fold.apply(block, best)
        return notes

    def apply_bytes(self, shape: tuple[int, int]) -> int:
        """See ScaleSearch."""
        return search_bytes(shape)

    def work(self, shape: tuple[int, int]) -> float:
        """See ScaleSearch."""
        return search_work(shape, len(ALPHAS) if self._options.alpha == "search" else 0)
