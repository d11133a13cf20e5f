# SPDX-License-Identifier: Apache-2.0
"""GPTQ: round one input column at a time, move its error onto the columns that are still free.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", section 3.3.
The free columns' optimal correction needs the rows of U, the upper Cholesky factor of H^-1 (factor.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import msgspec
import numpy as np
import torch

from linnet.compress.algorithm import Fitted, ratio, squared_errors
from linnet.compress.factor import (
    FACTOR_COPIES,
    Factor,
    check_damping,
    factorise,
    most_active_first,
    most_active_groups_first,
)
from linnet.compress.rounding import ColumnRounder
from linnet.compress.scales import of_one_group, scales_of, search_scales
from linnet.compress.statistic import Hessian, Statistic, StatisticKind
from linnet.compress.threads import one_thread
from linnet.compress.units import COLUMN_S, PRODUCT_S, ROUNDED_S
from linnet.schemes import codecs
from linnet.schemes.packed_weight import pack
from linnet.schemes.scheme import LinearScheme, Scheme

BLOCK_COLUMNS = 128
"""Errors reach the columns beyond a block in one matrix product (section 3.3, "lazy batch-updates")."""

_STRIP_COLUMNS = 32
"""Within a block the same, once more: a column gathers the errors of its own strip, the others' have arrived."""

COARSE_VALUES = 4
"""As many values as codes of two bits have."""

SIZED_OUTPUTS = 512
"""Of so many outputs at most the squares are summed: all of them take longer than the fit does."""


class GptqOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``damping``: this fraction of H's mean diagonal is added to it; tenfold on each failure to factorise.

    ``act_order``: most active columns first; groups stay where they are (scales from the unmoved weight), so that the
    layout is the canonical one. ``groups``: whole groups, most active first, so that a group's scales come from the
    weights as updated by then; without groups as true. ``scales``: minmax, or mse (the clipping of least error,
    weighted by H's diagonal).
    None: 0.01 and most active first; but for coarse codes, see ``for_codes``.
    """

    damping: float | None = None
    act_order: bool | Literal["groups"] | None = None
    scales: Literal["minmax", "mse"] = "mse"

    def __post_init__(self) -> None:
        if self.damping is not None:
            check_damping("gptq", self.damping)

    def for_codes(self, scheme: Scheme) -> tuple[float, bool | Literal["groups"]]:
        """Damping, and whether the most active columns come first.

        Codes of COARSE_VALUES make errors as large as the weights. The order that leaves the quiet columns to the last
        piles them up there: the objective falls, but the weights end twice as far from what they were, and where other
        rows are louder in these columns the model loses more. Damping prices that distance.
        """
        numbers = scheme.numbers
        coarse = numbers.integer and numbers.largest - numbers.smallest < COARSE_VALUES
        damping = (0.1 if coarse else 0.01) if self.damping is None else self.damping
        return damping, not coarse if self.act_order is None else self.act_order


class Gptq:
    """Codes by GPTQ on the Hessian of the calibration rows."""

    Options: ClassVar[type] = GptqOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"hessian": Hessian}

    def __init__(self, options: GptqOptions) -> None:
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
        """See Fit.fit; errors that reach a pruned weight go on to those after it.

        What the output error is a fraction of is estimated where there are more than SIZED_OUTPUTS.
        """
        hessian = statistics["hessian"]
        assert isinstance(hessian, Hessian)
        damping, act_order = self._options.for_codes(scheme.weight)
        group = scheme.weight.group_size if act_order in (False, "groups") else None
        order_of = None
        if act_order:
            order_of = most_active_first if group is None else partial(most_active_groups_first, group=group)
        key = damping, None if order_of is None else group or 0
        factor = hessian.derived(key, lambda: factorise(where, hessian, damping, order_of))
        rounded, scale, zero_point, damped_error = self._solve(weight, kept, scheme.weight, factor, group, tick)
        codes = codecs.quantize(rounded.numpy(), scheme.weight, scale, zero_point)
        unheard = float((rounded[:, factor.dead] - weight[:, factor.dead]).square().sum(dtype=torch.float64))
        del rounded
        packed = pack(codes, scale, zero_point, scheme)
        squared, norm = squared_errors(packed, weight)
        error = max(damped_error - factor.added * (squared - unheard), 0.0)
        size = _squared_outputs(hessian, weight, norm)
        notes = {"damping": factor.damping, "dead_inputs": int(factor.dead.sum())}
        return Fitted(packed, ratio(squared, norm), error / size if size > 0 else 0.0, notes)

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """Copies of H while factorising, and once more U and half of H beside codes and packed codes; between these U
        and the working weight, columns first and rows first, with its codes."""
        rows, columns = shape
        solving = columns**2 * 4 + rows * (columns * (4 + 4 + 1) + 4 * BLOCK_COLUMNS)
        return max(FACTOR_COPIES * 4 * columns**2 + 2 * rows * columns, solving)

    def work(self, shape: tuple[int, int]) -> float:
        """Factorising and moving errors are products; the columns are rounded one by one."""
        rows, columns = shape
        products = 2.0 * rows * columns**2 + 2.0 * columns**3
        return COLUMN_S * columns + ROUNDED_S * rows * columns + products * PRODUCT_S

    def _solve(
        self,
        weight: torch.Tensor,
        kept: torch.Tensor | None,
        scheme: Scheme,
        factor: Factor,
        group: int | None,
        tick: Callable[[float], None],
    ) -> tuple[torch.Tensor, np.ndarray, np.ndarray | None, float]:
        """The quantised values of ``weight``, scale, zero point and the damped squared output error.

        The error leaves the dead columns out: no row hears them, whatever stands on H's diagonal to factorise it.
        Scales of a ``group`` are computed when its first column is reached, from the weights as updated by then; where
        there is none all are, from the weight as it came.
        """
        rows, columns = weight.shape
        if group is None:
            search = self._options.scales == "mse"
            scale, zero_point = scales_of(weight.numpy(), scheme, search, factor.importance)
            rounder = ColumnRounder(scheme, scale, zero_point, (rows, columns))
        else:
            shape = codecs.scale_shape(scheme, (rows, columns))
            scale = np.zeros(shape, codecs.FLOAT_DTYPES[scheme.scale_dtype])
            zero_point = None if scheme.symmetric else np.zeros(shape, np.int8)
        places = range(columns) if factor.order is None else factor.order.tolist()
        moving = _columns_first(weight, factor.order)
        mask = None if kept is None else _columns_first(kept, factor.order)
        heard = ~factor.dead if factor.order is None else ~factor.dead[factor.order]
        importance = factor.importance if factor.order is None else factor.importance[places]
        step = BLOCK_COLUMNS if group is None else group * max(1, BLOCK_COLUMNS // group)  # groups lie in one block
        errors, total = torch.empty(min(step, columns), rows), 0.0
        for start in range(0, columns, step):
            stop = min(start + step, columns)
            block, moved = moving[start:stop], errors[: stop - start]
            here = None if mask is None else mask[start:stop]
            upper = factor.upper[start:stop, start:stop].contiguous()
            with one_thread():
                for first, last in _strips(stop - start, group):
                    if group is not None and (start + first) % group == 0:
                        values, index = block[first : first + group], places[start + first] // group
                        values = values if here is None else values * here[first : first + group]
                        own = self._scales_of_group(values, scheme, importance[start + first :][:group])
                        scale[:, index] = own[0][:, 0]
                        if zero_point is not None and own[1] is not None:
                            zero_point[:, index] = own[1][:, 0]
                        rounder = ColumnRounder(of_one_group(scheme), *own, (rows, group))
                    strip = places[start + first : start + last] if group is None else range(last - first)
                    _round_strip(block, moved, upper, first, last, rounder, strip, here)
                    block[last:].addmm_(upper[first:last, last:].T, moved[first:last], alpha=-1)
            moving[stop:].addmm_(factor.upper[start:stop, stop:].T, moved, alpha=-1)
            total += float(moved[heard[start:stop]].square_().sum(dtype=torch.float64))
            tick((stop - start) / columns)
        if factor.order is not None:
            moving = moving[torch.argsort(factor.order)]
        return moving.T.contiguous(), scale, zero_point, total

    def _scales_of_group(
        self, values: torch.Tensor, scheme: Scheme, importance: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and zero point [rows, 1] of a group [columns of the group, rows]."""
        if scheme.numbers.few or self._options.scales == "minmax":
            one = of_one_group(scheme)
            return scales_of(np.ascontiguousarray(values.T.numpy()), one, False, importance)
        scale, zero_point = search_scales(values, scheme, torch.from_numpy(importance))
        return scale[:, None], None if zero_point is None else zero_point[:, None]


def _columns_first(matrix: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """[rows, columns] -> a copy [columns, rows], the columns in ``order`` if there is one."""
    return matrix.T.clone(memory_format=torch.contiguous_format) if order is None else matrix.T[order]


def _squared_outputs(hessian: Hessian, weight: torch.Tensor, norm: float) -> float:
    """|W x|^2 over the calibration rows; ``norm`` is |W|^2."""
    part = weight[:: -(-len(weight) // SIZED_OUTPUTS)]
    own = norm if len(part) == len(weight) else float(part.square().sum(dtype=torch.float64))
    return hessian.quadratic(part) * norm / own if own > 0 else 0.0


def _strips(columns: int, group: int | None) -> Iterator[tuple[int, int]]:
    """Half-open ranges of a block's columns; where a group begins, a strip begins."""
    for start in range(0, columns, group or columns):
        stop = min(start + (group or columns), columns)
        for first in range(start, stop, _STRIP_COLUMNS):
            yield first, min(first + _STRIP_COLUMNS, stop)


def _round_strip(
    block: torch.Tensor,
    errors: torch.Tensor,
    upper: torch.Tensor,
    first: int,
    last: int,
    rounder: ColumnRounder,
    places: Sequence[int],
    kept: torch.Tensor | None,
) -> None:
    """Round columns [first, last) of ``block`` [columns, rows]; ``errors`` gets what each owes to those after it.

    ``places``: where the columns stand among those whose scales the rounder knows. ``kept``: what is not to be zero.
    """
    diagonal, rounded = torch.diagonal(upper)[first:last].tolist(), torch.empty(block.shape[1])
    columns = zip(block[first:last].unbind(), errors[first:last].unbind(), places, strict=True)
    for column, (values, error, place) in enumerate(columns, first):
        if column > first:
            values.addmv_(errors[first:column].T, upper[first:column, column], alpha=-1)
        rounder.round_into(rounded, values, place)
        if kept is not None:
            rounded.mul_(kept[column])
        torch.sub(values, rounded, out=error).div_(diagonal[column - first])
        values.copy_(rounded)
