# SPDX-License-Identifier: Apache-2.0
"""AWQ's clipping: the range of every scale is the one that costs the layer's output least; then round to nearest.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", section 3.2. The
scales of columns are a step of their own before this one (``transforms/awq.py``).
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import msgspec
import torch

from linnet.compress.algorithm import Fitted, ratio, squared_errors
from linnet.compress.scales import GRAM_COLUMNS, SHRINK_FACTORS, scales_of
from linnet.compress.statistic import SAMPLE_ROWS, RowSample, Statistic, StatisticKind
from linnet.compress.units import PRODUCT_S, ROUNDED_S
from linnet.schemes import codecs
from linnet.schemes.packed_weight import pack
from linnet.schemes.scheme import LinearScheme


class AwqOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``clip``: whether the ranges are searched at all."""

    clip: bool = True


class Awq:
    """Scales by the outputs' error on a sample of the rows, codes by rounding."""

    Options: ClassVar[type] = AwqOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"sample": RowSample}

    def __init__(self, options: AwqOptions) -> None:
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
        sample = statistics["sample"]
        assert isinstance(sample, RowSample)
        inputs, array = sample.values, weight.numpy()
        importance = inputs.square().mean(dim=0).numpy()
        scale, zero_point = scales_of(array, scheme.weight, self._options.clip, importance, inputs)
        tick(0.8)
        packed = pack(codecs.quantize(array, scheme.weight, scale, zero_point), scale, zero_point, scheme)
        wrong = inputs @ torch.from_numpy(packed.dequantize()).sub_(weight).T
        size = float((inputs @ weight.T).square().sum(dtype=torch.float64))
        tick(0.2)
        error = ratio(float(wrong.square().sum(dtype=torch.float64)), size)
        return Fitted(packed, ratio(*squared_errors(packed, weight)), error)

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """Codes and packed codes, the dequantised weight, the products of the sample."""
        rows, columns = shape
        return rows * columns * (3 + 4) + 2 * SAMPLE_ROWS * rows * 8 + 4 * min(columns, GRAM_COLUMNS) ** 2

    def work(self, shape: tuple[int, int]) -> float:
        """Thirteen ranges, each with a product as wide as a group."""
        products = 2.0 * shape[0] * shape[1] * 128 * len(SHRINK_FACTORS)
        return ROUNDED_S * shape[0] * shape[1] + products * PRODUCT_S
