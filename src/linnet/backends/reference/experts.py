# SPDX-License-Identifier: Apache-2.0
"""Experts: the choice, the linears of whoever was chosen, and the weighted sum.

A value [rows, chosen, width] is held as [rows * chosen, width].
"""

from collections.abc import Callable, Sequence

import torch

from linnet.backends.reference.ops import QuantisedValue, linear
from linnet.backends.reference.weights import LoadedWeight
from linnet.program.attributes import Route

Expert = Callable[[], tuple[LoadedWeight, torch.Tensor | None]]
"""Loads an expert's weight and bias: those that no row asks for stay where they are."""


def route(
    scores: torch.Tensor, attributes: Route, correction: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See attributes.Route."""
    probabilities = torch.sigmoid(scores) if attributes.scoring == "sigmoid" else torch.softmax(scores, dim=-1)
    candidates = probabilities if correction is None else probabilities + correction.float()
    if attributes.groups_chosen < attributes.groups:
        grouped = candidates.reshape(len(scores), attributes.groups, -1)
        greatest = grouped.topk(attributes.group_best, dim=-1).values.sum(dim=-1)
        order = torch.sort(greatest, dim=-1, descending=True, stable=True).indices
        kept = torch.zeros(grouped.shape[:2], dtype=torch.bool)
        kept.scatter_(1, order[:, : attributes.groups_chosen], True)
        candidates = torch.where(kept[..., None], grouped, float("-inf")).reshape(scores.shape)
    ids = torch.sort(candidates, dim=-1, descending=True, stable=True).indices[:, : attributes.chosen]
    weights = probabilities.gather(1, ids)
    if attributes.normalise:
        total = weights[:, 0]
        for rank in range(1, attributes.chosen):
            total = total + weights[:, rank]
        weights = weights / total[:, None]
    return ids.to(torch.int32), weights * attributes.factor


def rows_of(ids: torch.Tensor, expert: int) -> torch.Tensor:
    """Places [n] among the choices [rows * chosen] that fell on an expert, in order."""
    return torch.nonzero(ids.reshape(-1) == expert)[:, 0]


def take(x: torch.Tensor | QuantisedValue, rows: torch.Tensor) -> torch.Tensor | QuantisedValue:
    """Some rows of a value."""
    if isinstance(x, torch.Tensor):
        return x[rows]
    zero_points = None if x.zero_points is None else x.zero_points[rows]
    return QuantisedValue(x.codes[rows], x.scales[rows], x.group_size, zero_points, x.integer)


def read_by(x: torch.Tensor | QuantisedValue, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor | QuantisedValue:
    """The rows of x behind some choices: x has a row for every choice, or one for all choices of a row."""
    rows = x.shape[0] if isinstance(x, torch.Tensor) else x.codes.shape[0]
    return take(x, places if rows != ids.shape[0] else places // ids.shape[1])


def multiply(x: torch.Tensor | QuantisedValue, ids: torch.Tensor, own: Sequence[Expert]) -> torch.Tensor:
    """See attributes.Experts: fp32 [rows * chosen, outputs]."""
    parts, order = [], []
    for expert, load in enumerate(own):
        places = rows_of(ids, expert)
        if len(places) or not expert:  # of no rows at all: what the width is
            weight, bias = load()
            parts.append(linear(read_by(x, ids, places), weight, bias))
            order.append(places)
    return torch.cat(parts)[torch.argsort(torch.cat(order))]


def combine(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of a row's own rows, in rank order."""
    rows, chosen = weights.shape
    own = x.reshape(rows, chosen, x.shape[1])
    total = own[:, 0] * weights[:, :1]
    for rank in range(1, chosen):
        total = total + own[:, rank] * weights[:, rank, None]
    return total
