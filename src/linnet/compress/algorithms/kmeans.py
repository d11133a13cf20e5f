# SPDX-License-Identifier: Apache-2.0
"""K-means clustering: every row has a table of 4 or 16 values of its own, the means of its clusters of weights.

Han et al. 2016, "Deep Compression", section 3, with a table per row instead of one per layer. Data-free.

A few weights of every row may stand apart: those whose errors cost most. The others are then clustered as if these were
not there, in turns, and what is missing of them is a sparse term beside the codes (Kim et al. 2023, "SqueezeLLM",
section 4.2; there the largest and the most sensitive weights of a whole layer).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import torch

from linnet.compress.algorithm import Fitted, ratio
from linnet.compress.clustering import ROWS, cluster_rows, nearest
from linnet.compress.statistic import Statistic, StatisticKind
from linnet.compress.units import ROUNDED_S
from linnet.errors import ConfigError
from linnet.schemes.packed_weight import pack_learned
from linnet.schemes.scheme import LinearScheme
from linnet.schemes.terms import BF16, Sparse, sparse_bytes

TURNS = 3
"""In which weights are set apart and the others clustered."""


class KmeansOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``sparse``: the share of each row's weights that stand apart, six bytes each."""

    sparse: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sparse <= 0.5:
            raise ConfigError(f"sparse is {self.sparse}; accepted is 0 to 0.5")


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
        importance, bits, (rows, columns) = self.importance(statistics), scheme.weight.bits, weight.shape
        codes, table = torch.empty(rows, columns, dtype=torch.uint8), torch.empty(rows, 2**bits)
        count = self._apart(columns)
        values, places = torch.empty(rows, count), torch.empty(rows, count, dtype=torch.int32)
        error = 0.0
        for start in range(0, rows, ROWS):
            part = slice(start, min(start + ROWS, rows))
            mask = None if kept is None else kept[part]
            found = _cluster(weight[part], importance, bits, count, mask)
            codes[part], table[part], values[part], places[part] = found.codes, found.table, found.values, found.places
            error += float(found.missing.square().sum(dtype=torch.float64))
            tick((part.stop - start) / rows)
        packed = pack_learned(codes.numpy(), table.numpy().astype(BF16), scheme)
        sparse = Sparse(values.numpy().astype(BF16), places.numpy()) if count else None
        notes = {"sparse_weights": count} if count else {}
        size = float(weight.square().sum(dtype=torch.float64))
        return Fitted(packed, ratio(error, size), notes=notes, sparse=sparse)

    def _apart(self, columns: int) -> int:
        """How many weights of a row stand apart; one at least if any."""
        return max(1, round(self._options.sparse * columns)) if self._options.sparse else 0

    def term_bytes(self, shape: tuple[int, int], scheme: LinearScheme) -> int:
        """See MakesTerms."""
        return sparse_bytes(self._apart(shape[1]), shape[0])

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """Codes and packed codes; the rows that are sorted at a time are few."""
        return shape[0] * shape[1] * 3 + ROWS * shape[1] * 8 * 8

    def work(self, shape: tuple[int, int]) -> float:
        """Every row is sorted; borders are few."""
        return 8 * (1 + TURNS * (self._options.sparse > 0)) * ROUNDED_S * shape[0] * shape[1]


@dataclass(frozen=True)
class _Clustered:
    """Some rows: uint8 codes, fp32 tables of bf16 numbers, what stands apart and where, what is still missing."""

    codes: torch.Tensor
    table: torch.Tensor
    values: torch.Tensor
    places: torch.Tensor
    missing: torch.Tensor


def _cluster(
    weight: torch.Tensor, importance: torch.Tensor | None, bits: int, count: int, kept: torch.Tensor | None
) -> _Clustered:
    """``count`` weights of every row stand apart; of the turns each row keeps its best."""
    apart, best, least = None, torch.empty(0), torch.empty(0)
    for _ in range(1 + TURNS * (count > 0)):
        centres = cluster_rows(weight, importance, bits, apart)
        if kept is not None:
            centres.scatter_(1, centres.abs().argmin(dim=1, keepdim=True), 0.0)
        table = centres.bfloat16().float()
        *_, cost, places = _missing(weight, table, importance, count)
        left = cost.scatter(1, places, 0.0).sum(dim=1)
        if apart is None:
            best, least = table, left
        best, least = torch.where((left < least)[:, None], table, best), torch.minimum(left, least)
        apart = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, places, True)
    codes, missing, _, places = _missing(weight, best, importance, count)
    values = missing.gather(1, places)
    missing.scatter_(1, places, values - values.bfloat16().float())
    return _Clustered(codes, best, values, places, missing)


def _missing(
    weight: torch.Tensor, table: torch.Tensor, importance: torch.Tensor | None, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes of the nearest values of each row's table, what these leave, what that costs, and in each row where it
    costs most."""
    codes = nearest(weight, table)
    missing = weight - table.gather(1, codes.long())
    cost = missing.square() if importance is None else missing.square() * importance
    return codes, missing, cost, cost.topk(count, dim=1).indices.sort(dim=1).values
