# SPDX-License-Identifier: Apache-2.0
"""Pruning by magnitude, loudness and information: an input that says more keeps more of its weights.

Li et al. 2023, "E-Sparse: Boosting the Large Language Model Inference through Entropy-based N:M Sparsity" (Angel-SNIP).
The paper's, as far as its abstract and summaries say: the metric |w_ij| * (H(x_j) + alpha * ||x_j||), H the entropy of
a histogram of the input channel j beside the norm of its values; nothing is compared across outputs; no weight is
updated. Ours: the norm is the root mean square, so that the weight of both does not depend on how many rows there are;
the histogram is of a sample of the rows, between the channel's own extremes; unstructured patterns compete in their
row. Not done: the paper's global and local shuffles of channels, which move information-rich channels apart before N:M
and have to be undone in every reader.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch

from linnet.compress.masks import greatest
from linnet.compress.sparsifier import SparsifyOptions
from linnet.compress.statistic import ColumnSquares, RowSample, Statistic, StatisticKind
from linnet.compress.units import ROUNDED_S
from linnet.errors import ConfigError
from linnet.schemes.sparsity import parse_pattern


class EsparseOptions(SparsifyOptions, frozen=True, forbid_unknown_fields=True):
    """``alpha``: the loudness' weight beside the entropy (nats); ``bins`` of an input's histogram."""

    alpha: float = 1.0
    bins: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < float("inf"):
            raise ConfigError(f"alpha of esparse is {self.alpha}; accepted is 0 or more")
        if not 2 <= self.bins <= 256:
            raise ConfigError(f"bins of esparse is {self.bins}; accepted is 2 to 256")


class Esparse:
    """Wanda's comparison with the entropy of the inputs, seen on a sample of the rows, beside their norms."""

    Options: ClassVar[type] = EsparseOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"squares": ColumnSquares, "sample": RowSample}

    def __init__(self, options: EsparseOptions) -> None:
        self.pattern, self.shares = parse_pattern(options.pattern), options.shares
        self._options = options

    def sparsify(
        self,
        where: str,
        weight: torch.Tensor,
        statistics: Mapping[str, Statistic],
        tick: Callable[[float], None],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Sparsifier.sparsify."""
        squares, sample = statistics["squares"], statistics["sample"]
        assert isinstance(squares, ColumnSquares)
        assert isinstance(sample, RowSample)
        importance = entropy(sample.values, self._options.bins) + self._options.alpha * squares.root_mean
        kept = greatest(weight.abs().mul_(importance), self.pattern)
        tick(1.0)
        return weight * kept, kept

    def sparsify_bytes(self, shape: tuple[int, int]) -> int:
        """Scores and, of an unstructured pattern, their order; the histograms."""
        return shape[0] * shape[1] * (4 + 8) + 4 * self._options.bins * shape[1]

    def work(self, shape: tuple[int, int]) -> float:
        """Every element is compared with a few others."""
        return ROUNDED_S * shape[0] * shape[1]


def entropy(values: torch.Tensor, bins: int) -> torch.Tensor:
    """fp32 [rows, columns] -> nats [columns]: of a histogram of each column between its own extremes."""
    low, high = values.amin(dim=0), values.amax(dim=0)
    width = torch.where(high > low, (high - low) / bins, torch.ones_like(low))
    places = ((values - low) / width).long().clamp_(max=bins - 1)
    counts = torch.zeros(bins, values.shape[1]).scatter_add_(0, places, torch.ones_like(values))
    shares = counts / len(values)
    return -torch.xlogy(shares, shares).sum(dim=0)
