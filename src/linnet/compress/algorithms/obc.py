# SPDX-License-Identifier: Apache-2.0
"""Optimal Brain Compression: each row rounds its weights in an order of its own, the free ones making up for each.

Frantar and Alistarh 2022, "Optimal Brain Compression: A Framework for Accurate Post-Training Quantization and Pruning",
section 5. What GPTQ (algorithms/gptq.py) approximates by one order for all rows. It costs columns cubed for every row
and is a yardstick for small layers, in float64.

The paper rounds what costs least first, which suits pruning; on inputs of unequal size it loses up to twice as much as
GPTQ, for at the end the dearest weights are left with nobody to make up for them. What costs most first is the better
greedy order of the two.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import msgspec
import numpy as np
import torch

from linnet.compress.algorithm import Fitted, ratio, squared_errors
from linnet.compress.factor import check_damping, fill_dead
from linnet.compress.rounding import round_into
from linnet.compress.scales import scales_of
from linnet.compress.statistic import Hessian, Statistic, StatisticKind
from linnet.compress.units import ELEMENT_S
from linnet.schemes import codecs
from linnet.schemes.packed_weight import pack
from linnet.schemes.scheme import LinearScheme, Scheme

_ORDERS = {"best": ("dearest", "activity"), "dearest": ("dearest",), "cheapest": ("cheapest",)}
_BATCH_BYTES = 32 << 20
"""Of the rows' own inverses, which are worked on together."""


class ObcOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``damping``: this fraction of H's mean diagonal is added to it.

    ``order``: cheapest (the paper's) or dearest weight first; best: of dearest first and GPTQ's most active input
    first, every row keeps what leaves it the smaller error.
    """

    damping: float = 0.01
    order: Literal["best", "dearest", "cheapest"] = "best"

    def __post_init__(self) -> None:
        check_damping("obc", self.damping)


class Obc:
    """Codes in greedy order, row by row, on the Hessian of the calibration rows."""

    Options: ClassVar[type] = ObcOptions
    statistics: ClassVar[Mapping[str, StatisticKind]] = {"hessian": Hessian}

    def __init__(self, options: ObcOptions) -> None:
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
        hessian = statistics["hessian"]
        assert isinstance(hessian, Hessian)
        damped = hessian.matrix(where).double()
        _, mean = fill_dead(damped)
        torch.diagonal(damped).add_(self._options.damping * mean)
        importance = torch.diagonal(damped).float().numpy()
        scale, zero_point = scales_of(weight.numpy(), scheme.weight, True, importance)
        orders = _ORDERS[self._options.order]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        rows, columns = weight.shape
        rounded, step = torch.empty_like(weight), max(1, _BATCH_BYTES // (8 * columns**2))
        wide_scale, wide_zero = (
            None
            if each is None
            else torch.from_numpy(codecs.per_weight(each, scheme.weight, (rows, columns)).astype(np.float32))
            for each in (scale, zero_point)
        )
        assert wide_scale is not None
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            zero = None if wide_zero is None else wide_zero[part]
            exact, own = weight[part].double(), (wide_scale[part], zero, scheme.weight)
            mask = None if kept is None else kept[part]
            tried = [_greedy(exact, inverse, order, torch.diagonal(damped), *own, mask) for order in orders]
            errors = torch.stack([((each - exact) @ damped).mul_(each - exact).sum(dim=1) for each in tried])
            rounded[part] = torch.stack(tried)[errors.argmin(dim=0), torch.arange(len(exact))].float()
            tick((part.stop - start) / rows)
        packed = pack(codecs.quantize(rounded.numpy(), scheme.weight, scale, zero_point), scale, zero_point, scheme)
        difference = torch.from_numpy(packed.dequantize()).sub_(weight)
        error = ratio(hessian.quadratic(difference), hessian.quadratic(weight))
        return Fitted(packed, ratio(*squared_errors(packed, weight)), error)

    def fit_bytes(self, shape: tuple[int, int]) -> int:
        """H and its inverse, the rows' own with a product as large, the weights as they go."""
        rows, columns = shape
        return 3 * 8 * columns**2 + 2 * max(_BATCH_BYTES, 8 * columns**2) + 4 * 4 * rows * columns

    def work(self, shape: tuple[int, int]) -> float:
        """Every weight changes its row's whole inverse."""
        rows, columns = shape
        return 2.0 * len(_ORDERS[self._options.order]) * rows * columns**3 * ELEMENT_S


def _greedy(
    weights: torch.Tensor,
    inverse: torch.Tensor,
    order: str,
    activity: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    scheme: Scheme,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """The rounded values of float64 [rows, columns]; ``inverse`` of the damped H and ``activity``, its diagonal.

    What is not ``kept`` is rounded to zero, wherever the errors of others have taken it.
    """
    rows, columns = weights.shape
    own, every = inverse.expand(rows, -1, -1).clone(), torch.arange(rows)
    free, rounded = torch.ones(rows, columns, dtype=torch.bool), torch.empty_like(weights)
    nearest = torch.empty_like(weights)
    for _ in range(columns):
        round_into(nearest, weights, scale, zero, scheme)
        if kept is not None:
            nearest.mul_(kept)
        diagonal = torch.diagonal(own, dim1=1, dim2=2)
        cost = (weights - nearest).square() / diagonal
        urgency = {"dearest": cost, "cheapest": -cost, "activity": activity.expand(rows, -1)}[order]
        chosen = torch.where(free, urgency, -torch.inf).argmax(dim=1)
        rounded[every, chosen] = nearest[every, chosen]
        free[every, chosen] = False
        column, pivot = own[every, chosen], diagonal[every, chosen][:, None].clone()
        owed = (weights[every, chosen] - rounded[every, chosen])[:, None] / pivot
        weights = weights - owed * column
        own.baddbmm_(column[:, :, None], (column / pivot)[:, None, :], alpha=-1)
    return rounded
