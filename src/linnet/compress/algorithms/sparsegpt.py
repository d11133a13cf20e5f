# SPDX-License-Identifier: Apache-2.0
"""SparseGPT: prune one input column at a time, move its error onto the columns that are still free.

Frantar and Alistarh 2023, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", section 3.
What is pruned is chosen a block of columns (or a group of N:M) at a time, among the weights as updated by then: those
with the least w^2 / U_jj^2, U of factor.py. A quantise step by gptq after it works on the same Hessian, zeros held.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch

from linnet.compress.factor import FACTOR_COPIES, check_damping, factorise
from linnet.compress.masks import all_but, greatest, greatest_of_group
from linnet.compress.sparsifier import SparsifyOptions
from linnet.compress.statistic import Hessian, Statistic, StatisticKind
from linnet.compress.threads import one_thread
from linnet.compress.units import COLUMN_S, PRODUCT_S, ROUNDED_S
from linnet.schemes.sparsity import parse_pattern

BLOCK_COLUMNS = 128
"""The mask of an unstructured pattern is chosen for so many at a time (section 3.3: 128 is best)."""

_STRIP_COLUMNS = 32
"""Within a block a column gathers the errors of its own strip, the others' have arrived."""


class SparsegptOptions(SparsifyOptions, frozen=True, forbid_unknown_fields=True):
    """``damping``: this fraction of H's mean diagonal is added to it; tenfold on each failure to factorise.

    ``among``, of an unstructured pattern: every ``block`` of columns loses the same share (as published), or as many as
    it has among the least of the whole ``layer`` before any weight moved: loud inputs then keep more.
    """

    damping: float = 0.01
    among: Literal["block", "layer"] = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping("sparsegpt", self.damping)


class Sparsegpt:
    """Zeros and updated weights by the Hessian of the calibration rows."""

    Options: ClassVar[type] = SparsegptOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"hessian": Hessian}

    def __init__(self, options: SparsegptOptions) -> None:
        self.pattern, self.shares = parse_pattern(options.pattern), options.shares
        self._damping = options.damping
        self._among = options.among

    def sparsify(
        self,
        where: str,
        weight: torch.Tensor,
        statistics: Mapping[str, Statistic],
        tick: Callable[[float], None],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Sparsifier.sparsify. Inputs that were 0 on every row lose their weights first."""
        hessian = statistics["hessian"]
        assert isinstance(hessian, Hessian)
        damping = self._damping
        factor = hessian.derived((damping, None), lambda: factorise(where, hessian, damping, None))
        rows, columns = weight.shape
        group = self.pattern.group
        width = group or _STRIP_COLUMNS
        step = width * (BLOCK_COLUMNS // width)
        moving = weight.T.clone(memory_format=torch.contiguous_format)
        kept, errors = torch.empty(columns, rows, dtype=torch.bool), torch.empty(min(step, columns), rows)
        precision = torch.diagonal(factor.upper).reciprocal().masked_fill(factor.dead, 0)[:, None]
        least = None
        if group is None and self._among == "layer":
            least = ~greatest((moving * precision).square_(), self.pattern, "layer")
        for start in range(0, columns, step):
            stop = min(start + step, columns)
            block, moved, mask = moving[start:stop], errors[: stop - start], kept[start:stop]
            upper, certainty = factor.upper[start:stop, start:stop].contiguous(), precision[start:stop]
            with one_thread():
                if group is None:
                    count = self.pattern.pruned(block.numel()) if least is None else int(least[start:stop].sum())
                    mask.copy_(all_but((block * certainty).square_().view(1, -1), count).view(block.shape))
                for first in range(0, stop - start, width):
                    last = min(first + width, stop - start)
                    if self.pattern.kept is not None:
                        scores = (block[first:last] * certainty[first:last]).square_()
                        mask[first:last] = greatest_of_group(scores, self.pattern.kept)
                    _prune_strip(block, moved, mask, upper, first, last)
                    block[last:].addmm_(upper[first:last, last:].T, moved[first:last], alpha=-1)
            moving[stop:].addmm_(factor.upper[start:stop, stop:].T, moved, alpha=-1)
            tick((stop - start) / columns)
        return moving.T.contiguous(), kept.T.contiguous()

    def sparsify_bytes(self, shape: tuple[int, int]) -> int:
        """Copies of H while factorising, then U; the working weight and its mask, columns first."""
        rows, columns = shape
        solving = columns * columns * 4 + rows * (columns * (4 + 1) + (4 + 8) * BLOCK_COLUMNS)
        return max(FACTOR_COPIES * 4 * columns**2, solving)

    def work(self, shape: tuple[int, int]) -> float:
        """Factorising and moving errors are products; the columns are pruned one by one."""
        rows, columns = shape
        products = 2.0 * rows * columns**2 + 2.0 * columns**3
        return COLUMN_S * columns + ROUNDED_S * rows * columns / 4 + products * PRODUCT_S


def _prune_strip(
    block: torch.Tensor, errors: torch.Tensor, kept: torch.Tensor, upper: torch.Tensor, first: int, last: int
) -> None:
    """Prune columns [first, last) of ``block`` [columns, rows]; ``errors`` gets what each owes to those after it."""
    diagonal = torch.diagonal(upper)[first:last].tolist()
    for column, own in enumerate(diagonal, first):
        values = block[column]
        if column > first:
            values.addmv_(errors[first:column].T, upper[first:column, column], alpha=-1)
        torch.mul(values, ~kept[column], out=errors[column]).div_(own)
        values.mul_(kept[column])
