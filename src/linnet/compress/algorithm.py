# SPDX-License-Identifier: Apache-2.0
"""What an algorithm is: it declares the statistics it needs and turns a weight into codes and scales."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import msgspec
import torch

from linnet.compress.recipe import explain
from linnet.compress.statistic import Statistic
from linnet.errors import ConfigError, unknown_choice
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.scheme import LinearScheme

_SLICE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Fit:
    """A compressed weight and what is known about its error (plain numbers, they go into the manifest).

    ``weight_error``: |Q - W|^2 / |W|^2. ``output_error``: |Q x - W x|^2 / |W x|^2 over the calibration rows, if known.
    """

    packed: PackedWeight
    weight_error: float
    output_error: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


class Algorithm(Protocol):
    """Built from its options once per run; holds no state between fits."""

    Options: ClassVar[type]
    statistics: ClassVar[Mapping[str, Callable[[int], Statistic]]]
    """Name -> constructor (width of the tap). Empty: the algorithm is data-free and no model is run."""

    def __init__(self, options: Any) -> None: ...

    def fit(
        self,
        where: str,
        weight: torch.Tensor,
        scheme: LinearScheme,
        statistics: Mapping[str, Statistic],
        tick: Callable[[float], None],
    ) -> Fit:
        """Compress fp32 ``weight`` [rows, columns], which may be overwritten.

        ``where`` names the module in errors; ``tick(fraction)`` tells progress and may raise Interrupted.
        """

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """Greatest extra memory of a fit, statistics and the weight itself not counted."""


def make_algorithm(name: str, options: Mapping[str, Any], known: Mapping[str, type[Algorithm]]) -> Algorithm:
    """The named algorithm with checked options; ConfigError lists what is known."""
    if name not in known:
        raise unknown_choice("algorithm", name, known)
    kind = known[name]
    try:
        return kind(msgspec.convert(dict(options), kind.Options))
    except msgspec.ValidationError as error:
        raise ConfigError(f"options of algorithm {name}: {explain(error, options, kind.Options)}") from error


def squared_errors(packed: PackedWeight, weight: torch.Tensor) -> tuple[float, float]:
    """(|Q - W|^2, |W|^2), a slice of rows at a time so that no second copy of a large weight is made."""
    rows, columns = packed.shape
    block = packed.scheme.weight.block
    height = 1 if block is None else block[0]
    step = max(1, _SLICE_ELEMENTS // (columns * height)) * height
    error = norm = 0.0
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        part = weight[start:stop]
        difference = torch.from_numpy(packed.take_rows([(start, stop)]).dequantize()).sub_(part)
        error += float(difference.square_().sum(dtype=torch.float64))
        norm += float(part.square().sum(dtype=torch.float64))
    return error, norm


def ratio(error: float, size: float) -> float:
    """error / size; 0 for what is nothing and stays nothing."""
    return error / size if size > 0 else error
