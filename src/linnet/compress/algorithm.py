# SPDX-License-Identifier: Apache-2.0
"""What an algorithm is: it declares the statistics it needs and turns a weight into codes and scales."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch

from linnet.backends.reference.weights import to_torch
from linnet.compress.statistic import Statistic, StatisticKind
from linnet.schemes.packed_weight import PackedWeight
from linnet.schemes.scheme import LinearScheme
from linnet.schemes.terms import Outliers, Sparse

if TYPE_CHECKING:
    from linnet.compress.site import Site
    from linnet.compress.stages import Stage

_SLICE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Fitted:
    """A compressed weight and what is known about its error (plain numbers, they go into the manifest).

    ``weight_error``: |Q - W|^2 / |W|^2 ``output_error``: |Q x - W x|^2 / |W x|^2 over the calibration rows, if known.
    """

    packed: PackedWeight
    weight_error: float
    output_error: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    outliers: Outliers | None = None
    """Columns that the packed weight leaves 0: a term of their own."""
    sparse: Sparse | None = None
    """What is added to the packed weight: likewise."""

    def whole(self) -> np.ndarray:
        """fp32 [rows, columns]: what codes and terms mean together."""
        values = self.packed.dequantize()
        if self.outliers is not None:
            values[:, list(self.outliers.columns)] = self.outliers.weight
        if self.sparse is not None:
            self.sparse.add_to(values)
        return values


class Fit(Protocol):
    """Compresses one linear. Built from its options once per run; holds no state between fits."""

    Options: ClassVar[type]
    statistics: ClassVar[Mapping[str, StatisticKind]]
    """Name -> kind. Empty: the algorithm is data-free and no model is run."""

    def __init__(self, options: Any) -> None: ...

    def fit(
        self,
        where: str,
        weight: torch.Tensor,
        scheme: LinearScheme,
        statistics: Mapping[str, Statistic],
        tick: Callable[[float], None],
        kept: torch.Tensor | None = None,
    ) -> Fitted:
        """Compress fp32 ``weight`` [rows, columns], which is the block's own: finite, not to be written to.

        ``where`` names the module in errors; ``tick(fraction)`` tells progress and may raise Interrupted. ``kept``, of
        a pruned weight: bool [rows, columns]; where it is not set the weight is zero and its code is to mean zero. A
        fit that rounds every weight on its own need not look at it: zero stays zero under every scheme.
        """

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """Greatest extra memory of a fit, statistics and the weight itself not counted."""

    def work(self, shape: tuple[int, int]) -> float:
        """Predicted seconds of a fit, see units.py."""


@runtime_checkable
class MakesTerms(Protocol):
    """A Fit or BlockFit that may store more beside a linear's codes."""

    def term_bytes(self, shape: tuple[int, int], scheme: LinearScheme) -> int:
        """How many bytes more at most, whatever the rows turn out to be."""


@runtime_checkable
class BlockFit(Protocol):
    """Compresses a whole block at once. The default, StageByStage, asks a Fit for one linear after another."""

    Options: ClassVar[type]
    statistics: ClassVar[Mapping[str, StatisticKind]]
    follows_dense: ClassVar[bool]
    """Whether a block's output is to be what the dense model's is at this place, errors of the blocks before made up
    for; if not, what the dense block makes of the same input."""

    def __init__(self, options: Any) -> None: ...

    def fit_block(self, site: "Site") -> "Stage":
        """Prune and pack every linear of ``site``; returns what of the block the rows have still to run through."""

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """As Fit's, of the largest linear."""

    def work(self, shape: tuple[int, int]) -> float:
        """As Fit's, of one linear."""


def squared_errors(packed: PackedWeight, weight: torch.Tensor | np.ndarray) -> tuple[float, float]:
    """(|Q - W|^2, |W|^2), a slice of rows at a time so that no second copy of a large weight is made.

    ``weight``: of any float type.
    """
    rows, columns = packed.shape
    block = packed.scheme.weight.block
    height = 1 if block is None else block[0]
    step = max(1, _SLICE_ELEMENTS // (columns * height)) * height
    error = norm = 0.0
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        part = to_torch(weight[start:stop]) if isinstance(weight, np.ndarray) else weight[start:stop]
        difference = torch.from_numpy(packed.take_rows([(start, stop)]).dequantize()).sub_(part)
        error += float(difference.square_().sum(dtype=torch.float64))
        norm += float(part.square().sum(dtype=torch.float64))
    return error, norm


def ratio(error: float, size: float) -> float:
    """error / size; 0 for what is nothing and stays nothing."""
    return error / size if size > 0 else error
