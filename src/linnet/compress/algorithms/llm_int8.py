# SPDX-License-Identifier: Apache-2.0
"""LLM.int8(): the few columns whose inputs are outliers stay bf16 and are multiplied apart; the others are rounded.

Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", section 3.2. There outliers
are whatever exceeds the threshold in the batch at hand; here what did so on the calibration rows, since a token's
answer must not depend on its neighbours. Made for schemes that round the input too (W8A8): one outlier then no longer
takes a whole token's scale. Where only weights are rounded, no column is an outlier.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

import msgspec
import torch

from linnet.compress.algorithm import Fitted, ratio
from linnet.compress.statistic import ColumnMagnitude, Statistic, StatisticKind
from linnet.compress.units import ROUNDED_S
from linnet.errors import ConfigError
from linnet.schemes.packed_weight import quantize_weight
from linnet.schemes.scheme import LinearScheme
from linnet.schemes.terms import BF16, Outliers


class LlmInt8Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``threshold``: an input that exceeds it on any row is an outlier. ``most``: at most this share of a linear's
    inputs are, the loudest ones; each costs two bytes a row instead of one."""

    threshold: float = 6.0
    most: float = 0.05

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ConfigError(f"threshold of llm_int8 is {self.threshold}; accepted is above 0")
        if not 0 <= self.most < 1:
            raise ConfigError(f"most of llm_int8 is {self.most}; accepted is 0 to below 1")


class LlmInt8:
    """Outlier columns apart, the others rounded to nearest."""

    Options: ClassVar[type] = LlmInt8Options
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"magnitude": ColumnMagnitude}

    def __init__(self, options: LlmInt8Options) -> None:
        self._options = options

    def fit(
        self,
        where: str,
        weight: torch.Tensor,
        scheme: LinearScheme,
        statistics: Mapping[str, Statistic],
        tick: Callable[[float], None],
        kept: torch.Tensor | None = None,
    ) -> Fitted:
        """See Fit.fit."""
        magnitude = statistics["magnitude"]
        assert isinstance(magnitude, ColumnMagnitude)
        columns = self.outliers(magnitude.greatest) if _rounds_inputs(scheme) else []
        rest = weight.clone()
        rest[:, columns] = 0
        packed = quantize_weight(rest.numpy(), scheme)
        apart = weight[:, columns].numpy().astype(BF16)
        fitted = Fitted(
            packed,
            0.0,
            notes={"outlier_columns": len(columns)},
            outliers=Outliers(tuple(columns), apart) if columns else None,
        )
        error = float(torch.from_numpy(fitted.whole()).sub_(weight).square().sum(dtype=torch.float64))
        tick(1.0)
        return replace(fitted, weight_error=ratio(error, float(weight.square().sum(dtype=torch.float64))))

    def outliers(self, greatest: torch.Tensor) -> list[int]:
        """The columns, ascending, whose greatest magnitude exceeds the threshold; the loudest if they are too many."""
        found = int((greatest > self._options.threshold).sum())
        count = min(found, self._most(len(greatest)))
        return sorted(torch.topk(greatest, count).indices.tolist())

    def _most(self, columns: int) -> int:
        return int(self._options.most * columns)

    def term_bytes(self, shape: tuple[int, int], scheme: LinearScheme) -> int:
        """See MakesTerms: as if as many inputs were outliers as may be."""
        return shape[0] * self._most(shape[1]) * BF16.itemsize if _rounds_inputs(scheme) else 0

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """The weight without outliers, its codes, what they mean."""
        return shape[0] * shape[1] * (4 + 3 + 4)

    def work(self, shape: tuple[int, int]) -> float:
        """Every element once."""
        return ROUNDED_S * shape[0] * shape[1]


def _rounds_inputs(scheme: LinearScheme) -> bool:
    """Whether an outlier among its inputs would cost anything."""
    return scheme.input is not None
