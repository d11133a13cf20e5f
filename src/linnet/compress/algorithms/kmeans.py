# SPDX-License-Identifier: Apache-2.0
"""K-means clustering: every row has a table of 4 or 16 values of its own, the means of its clusters of weights.

Han et al. 2016, "Deep Compression", section 3, with a table per row instead of one per layer. Data-free.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import msgspec
import torch

from linnet.compress.algorithm import Fitted, ratio, squared_errors
from linnet.compress.clustering import cluster_rows, nearest
from linnet.compress.statistic import Statistic, StatisticKind
from linnet.compress.units import ROUNDED_S
from linnet.schemes.packed_weight import pack_learned
from linnet.schemes.scheme import LinearScheme
from linnet.schemes.terms import BF16


class KmeansOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It has none."""


class Kmeans:
    """Tables by clustering, all weights alike."""

    Options: ClassVar[type] = KmeansOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {}
    learns_tables: ClassVar[bool] = True

    def __init__(self, options: KmeansOptions) -> None:
        self._options = options

    def importance(self, statistics: Mapping[str, Statistic]) -> torch.Tensor | None:
        """What a squared error of each column costs, [columns]; None: all alike."""
        return None

    def fit(
        self,
        where: str,
        weight: torch.Tensor,
        scheme: LinearScheme,
        statistics: Mapping[str, Statistic],
        tick: Callable[[float], None],
        kept: torch.Tensor | None = None,
    ) -> Fitted:
        """See Fit.fit. Where weights were pruned, a table's value nearest to 0 is 0."""
        centres = cluster_rows(weight, self.importance(statistics), scheme.weight.bits)
        if kept is not None:
            centres.scatter_(1, centres.abs().argmin(dim=1, keepdim=True), 0.0)
        table = centres.numpy().astype(BF16)
        codes = nearest(weight, torch.from_numpy(table.astype("float32")))
        packed = pack_learned(codes.numpy(), table, scheme)
        tick(1.0)
        return Fitted(packed, ratio(*squared_errors(packed, weight)))

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """Codes and packed codes; the rows that are sorted at a time are few."""
        return shape[0] * shape[1] * 3 + 256 * shape[1] * 8 * 8

    def work(self, shape: tuple[int, int]) -> float:
        """Every row is sorted; borders are few."""
        return 8 * ROUNDED_S * shape[0] * shape[1]
