# SPDX-License-Identifier: Apache-2.0
"""Round to nearest: every weight to its nearest code. Data-free; the baseline of everything else."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import msgspec
import torch

from linnet.compress.algorithm import Fitted, ratio, squared_errors
from linnet.compress.memory import ROUNDED_BYTES
from linnet.compress.scales import scales_of
from linnet.compress.statistic import Statistic, StatisticKind
from linnet.compress.units import ROUNDED_S
from linnet.schemes import codecs
from linnet.schemes.packed_weight import pack
from linnet.schemes.scheme import LinearScheme


class RtnOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``scales``: minmax (the trade's default) or mse (the clipping with the least squared weight error)."""

    scales: Literal["minmax", "mse"] = "minmax"


class Rtn:
    """Scales from the weight alone, codes by rounding."""

    Options: ClassVar[type] = RtnOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {}

    def __init__(self, options: RtnOptions) -> None:
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
        array = weight.numpy()
        scale, zero_point = scales_of(array, scheme.weight, self._options.scales == "mse")
        codes = codecs.quantize(array, scheme.weight, scale, zero_point)
        packed = pack(codes, scale, zero_point, scheme)
        tick(1.0)
        return Fitted(packed, ratio(*squared_errors(packed, weight)))

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """Codes, unsigned codes and packed codes; scales and slices are small."""
        return shape[0] * shape[1] * ROUNDED_BYTES

    def work(self, shape: tuple[int, int]) -> float:
        """Every element once."""
        return ROUNDED_S * shape[0] * shape[1]
