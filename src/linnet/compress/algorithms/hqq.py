# SPDX-License-Identifier: Apache-2.0
"""HQQ: ranges that make most weights right and leave the rest to be wrong, found without data.

Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models": minimise the sum of |W - Q|^p,
p < 1, which forgives outliers. Half-quadratic splitting keeps an error E beside the weights: by turns E shrinks what is
wrong (a generalised soft threshold), and the zero point and scale fit W - E in least squares, codes held.
They optimise a zero point of any value. Stored ones are whole numbers, which small steps never reach: three neighbours
are begun from, and the scale moves too.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import numpy as np
import torch

from linnet.compress.algorithm import Fitted, ratio, squared_errors
from linnet.compress.rounding import round_into
from linnet.compress.scales import scales_of
from linnet.compress.statistic import Statistic, StatisticKind
from linnet.compress.threads import one_thread
from linnet.compress.units import ROUNDED_S
from linnet.errors import ConfigError
from linnet.schemes import codecs
from linnet.schemes.packed_weight import pack
from linnet.schemes.scheme import LinearScheme, Scheme

_SLICE_ELEMENTS = 1 << 16
_KAPPA = 1.01
"""By how much the errors are held closer to what they are, each turn (the paper's)."""


class HqqOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``p``: of the norm. ``beta``: how soon errors count as outliers, in 1 / scale. ``iterations``: turns."""

    p: float = 0.7
    beta: float = 10.0
    iterations: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ConfigError(f"p of hqq is {self.p}; accepted is above 0 and below 1")
        if not 0 < self.beta < float("inf"):
            raise ConfigError(f"beta of hqq is {self.beta}; accepted is above 0")
        if not 1 <= self.iterations <= 1000:
            raise ConfigError(f"iterations of hqq is {self.iterations}; accepted is 1 to 1000")


class Hqq:
    """Scales and zero points from the weight alone, codes by rounding."""

    Options: ClassVar[type] = HqqOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {}

    def __init__(self, options: HqqOptions) -> None:
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
        scale, zero_point = scales_of(array, scheme.weight, True)
        with one_thread():
            for place, values in _cells(weight, scheme.weight):
                zero = None if zero_point is None else zero_point[place]
                scale[place], zero = self._solve(values, scale[place], zero, scheme.weight)
                if zero_point is not None:
                    zero_point[place] = zero
        tick(1.0)
        packed = pack(codecs.quantize(array, scheme.weight, scale, zero_point), scale, zero_point, scheme)
        return Fitted(packed, ratio(*squared_errors(packed, weight)))

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """As round to nearest, and a few slices; of a scale for the whole tensor a few copies of it."""
        return shape[0] * shape[1] * (3 + 6 * 4)

    def work(self, shape: tuple[int, int]) -> float:
        """Every element once a turn, and once more to be rounded."""
        return ROUNDED_S * shape[0] * shape[1] * (1 + self._options.iterations / 2)

    def _solve(
        self, values: torch.Tensor, scale: np.ndarray, zero_point: np.ndarray | None, scheme: Scheme
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and zero point of [scales, elements], of all turns those with the least sum of |W - Q|^p."""
        best: _Best | None = None
        smallest, largest = codecs.code_range(scheme)
        for shift in (0,) if zero_point is None else (0, -1, 1):
            begun = None if zero_point is None else np.clip(zero_point + shift, smallest, largest).astype(np.int8)
            best = self._turns(values, scale, begun, scheme, best)
        assert best is not None
        return best.scale, best.zero_point

    def _turns(
        self,
        values: torch.Tensor,
        scale: np.ndarray,
        zero_point: np.ndarray | None,
        scheme: Scheme,
        best: "_Best | None",
    ) -> "_Best":
        """The turns from one beginning, until none of the scales gains by one."""
        options, rounded = self._options, torch.empty_like(values)
        beta, last = options.beta, np.full(len(values), np.inf, np.float32)
        for _ in range(options.iterations + 1):
            wide = torch.from_numpy(scale.astype(np.float32))[:, None]
            zero = None if zero_point is None else torch.from_numpy(zero_point.astype(np.float32))[:, None]
            round_into(rounded, values, wide, zero, scheme)
            wrong = (values - rounded).div_(wide)
            powers = wrong.abs().clamp_(min=1e-8).pow_(options.p)
            loss = (powers.sum(dim=1) * wide[:, 0] ** options.p).numpy()
            best = _better(best, _Best(loss, scale, zero_point))
            if not (loss < last).any():
                break
            last = loss
            wished = values - _shrunk(wrong, powers, beta).mul_(wide)
            scale, zero_point = _least_squares(wished, rounded, wide, zero, scheme)
            beta *= _KAPPA
        assert best is not None
        return best


@dataclass(frozen=True)
class _Best:
    """Per scale: the loss, and what it was reached with."""

    loss: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None


def _better(best: _Best | None, found: _Best) -> _Best:
    """Of two, per scale the one that loses less; of equals the first."""
    if best is None:
        return found
    better = found.loss < best.loss
    zero_point = None
    if best.zero_point is not None and found.zero_point is not None:
        zero_point = np.where(better, found.zero_point, best.zero_point)
    return _Best(np.minimum(found.loss, best.loss), np.where(better, found.scale, best.scale), zero_point)


def _shrunk(errors: torch.Tensor, powers: torch.Tensor, beta: float) -> torch.Tensor:
    """The proximal step of |.|^p, approximately: small errors vanish, large ones stay. ``powers``: |errors|^p."""
    sizes = errors.abs()
    threshold = powers / sizes.clamp(min=1e-8) / beta
    return errors.sign() * (sizes - threshold).clamp_(min=0)


def _least_squares(
    wished: torch.Tensor, rounded: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray | None]:
    """Zero point, then scale, with which the codes of ``rounded`` come nearest to ``wished``."""
    numbers, zero_point = rounded / scale, None
    if zero is not None:
        moved = zero + (numbers - wished / scale).mean(dim=1, keepdim=True)
        new = moved.round_().clamp_(*codecs.code_range(scheme))
        numbers = numbers + zero - new
        zero_point = new[:, 0].numpy().astype(np.int8)
    size = numbers.square().sum(dim=1)
    fitted = torch.where(size > 0, (wished * numbers).sum(dim=1) / size.clamp(min=1e-30), scale[:, 0])
    fitted = torch.where(fitted > 0, fitted, scale[:, 0])
    return codecs.round_scale(fitted.numpy(), scheme), zero_point


def _cells(weight: torch.Tensor, scheme: Scheme) -> Iterator[tuple[tuple[slice | int, slice | int], torch.Tensor]]:
    """(place in the array of scales, fp32 [scales there, elements of each]), some scales at a time."""
    rows, columns = weight.shape
    shape = codecs.scale_shape(scheme, (rows, columns))
    if scheme.block is not None:
        height, width = scheme.block
        for i, j in np.ndindex(shape):
            part = weight[i * height : (i + 1) * height, j * width : (j + 1) * width]
            yield (slice(i, i + 1), j), part.reshape(1, -1)
        return
    if scheme.granularity == "tensor":
        yield (slice(0, 1), 0), weight.reshape(1, -1)
        return
    size = columns // shape[1]
    step = max(1, _SLICE_ELEMENTS // size)
    for index in range(shape[1]):
        for start in range(0, rows, step):
            own = slice(start, min(start + step, rows))
            yield (own, index), weight[own, index * size : (index + 1) * size]
