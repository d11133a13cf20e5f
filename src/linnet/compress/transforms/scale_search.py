# SPDX-License-Identifier: Apache-2.0
"""Which of several scalings of a fold's columns costs its readers least, once everything is rounded to nearest."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from linnet.backends.reference.ops import dequantise, quantise
from linnet.compress.algorithm import ratio
from linnet.compress.block import Block
from linnet.compress.folds import Fold
from linnet.compress.rounding import rounded
from linnet.compress.statistic import SAMPLE_ROWS
from linnet.compress.units import PRODUCT_S, ROUNDED_S
from linnet.schemes.scheme import LinearScheme, Scheme


class ScaleSearch:
    """``inputs`` fp32 [rows, width]: a sample of the fold's value. Dense readers cost nothing and are left out."""

    def __init__(self, block: Block, fold: Fold, schemes: Mapping[str, LinearScheme], inputs: torch.Tensor) -> None:
        self._inputs = inputs
        compressed = {info.tensor: schemes[info.module] for info in fold.readers if info.module in schemes}
        self._readers = [(block.dense(name), scheme) for name, scheme in compressed.items()]
        self._exact = [inputs @ weight.T for weight, _ in self._readers]

    @property
    def greatest_weights(self) -> torch.Tensor:
        """The greatest |weight| of every column, fp32 [width]."""
        return torch.stack([weight.abs().amax(dim=0) for weight, _ in self._readers]).amax(dim=0)

    def error(self, scales: torch.Tensor) -> float:
        """Mean over the readers of |y' - y|^2 / |y|^2, y' from rounded x / scales and rounded weight * scales."""
        total = 0.0
        for (weight, scheme), exact in zip(self._readers, self._exact, strict=True):
            values = self._inputs / scales
            if scheme.input is not None:
                values = _as_rounded(values, scheme.input)
            wrong = values @ rounded(weight * scales, scheme.weight).T - exact
            total += ratio(float(wrong.square().sum(dtype=torch.float64)), float(exact.square().sum()))
        return total / len(self._readers)

    def best(self, candidates: Iterable[tuple[float, torch.Tensor]]) -> tuple[torch.Tensor | None, Mapping[str, Any]]:
        """Of (alpha, scales) the one with the least error, None where unscaled columns are as good; notes about it."""
        plain = least = self.error(torch.ones(self._inputs.shape[1]))
        chosen: tuple[float | None, torch.Tensor | None] = (None, None)
        for alpha, scales in candidates:
            error = self.error(scales)
            if error < least:
                least, chosen = error, (alpha, scales)
        return chosen[1], {"alpha": chosen[0], "error_before": plain, "error": least}


def _as_rounded(values: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Activations as they will be rounded; a scale that is yet to be calibrated is the one of these rows."""
    scale = None if scheme.dynamic else (values.abs().amax() / scheme.half_range).clamp_min(1e-30)
    return dequantise(quantise(values, scheme, scale))


def search_bytes(shape: tuple[int, int]) -> int:
    """Memory of a search: a reader's weight scaled, divided and rounded, and the sample's outputs, exact and not."""
    rows, columns = shape
    return 3 * 4 * rows * columns + 2 * SAMPLE_ROWS * 4 * (2 * columns + 3 * rows)


def search_work(shape: tuple[int, int], candidates: int) -> float:
    """Seconds (units.py): every candidate, and no scaling at all, rounds the weights and multiplies the sample by them;
    the exact outputs are one product more."""
    return (candidates + 2) * shape[0] * shape[1] * (ROUNDED_S / 4 + 2.0 * SAMPLE_ROWS * PRODUCT_S)


def balanced(scales: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Positive scales around 1 (geometric mean), 1 where a column is not ``live``."""
    logs = torch.where(live, torch.log2(scales.clamp(min=1e-20)), 0.0)
    logs = torch.where(live, logs - logs.sum() / live.sum().clamp(min=1), 0.0)
    return torch.exp2(logs.clamp(-16, 16))
