# SPDX-License-Identifier: Apache-2.0
"""The multiple-choice knapsack, exactly: one choice of every group, least cost, at most so many bytes.

Dynamic programming over the bytes that are reached: group after group, of the selections so far only those stay that no
other beats in both bytes and cost. The linear relaxation of the groups to come says what a selection must still cost at
least; what cannot become better than a selection that is known is dropped. (Pisinger 1995; Kellerer, Pferschy and
Pisinger 2004, section 11.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_TOLERANCE = 1e-12
"""Of a cost: sums of the same numbers in another order are equal."""


@dataclass(frozen=True)
class Choice:
    """What one group may become."""

    bytes: int
    cost: float


def choose(groups: Sequence[Sequence[Choice]], budget_bytes: int) -> list[int]:
    """The index of each group's choice. The cheapest selection; of equally cheap ones a smallest.

    Costs are finite. ValueError if even the smallest choices together exceed the budget.
    """
    if sum(min(choice.bytes for choice in group) for group in groups) > budget_bytes:
        raise ValueError(f"no selection fits {budget_bytes} bytes")
    bounds = [_Relaxation(groups[at:]) for at in range(len(groups) + 1)]
    known = bounds[0].reached(budget_bytes)
    slack = _TOLERANCE * max(1.0, sum(max(abs(choice.cost) for choice in group) for group in groups))
    used, costs = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []  # per group: from which selection before, with which choice
    for group, rest in zip(groups, bounds[1:], strict=True):
        sizes = np.array([choice.bytes for choice in group], np.int64)
        every = (used[:, None] + sizes).ravel()
        total = (costs[:, None] + np.array([choice.cost for choice in group])).ravel()
        open_ = np.flatnonzero(every + rest.least_bytes <= budget_bytes)
        open_ = open_[total[open_] + rest.at_least(budget_bytes - every[open_]) <= known + slack]
        order = open_[np.lexsort((total[open_], every[open_]))]
        cheaper = total[order] < np.minimum.accumulate(np.concatenate(([np.inf], total[order])))[:-1]
        kept = order[cheaper]
        used, costs = every[kept], total[kept]
        steps.append((kept // len(group), kept % len(group)))
    place, chosen = len(costs) - 1, []  # the largest that is left is the cheapest
    for parents, indices in reversed(steps):
        chosen.append(int(indices[place]))
        place = int(parents[place])
    return chosen[::-1]


class _Relaxation:
    """What some groups cost at least within so many bytes, if choices could be mixed."""

    def __init__(self, groups: Sequence[Sequence[Choice]]) -> None:
        hulls = [_hull(group) for group in groups]
        self.least_bytes = sum(hull[0].bytes for hull in hulls)
        steps = sorted(
            (
                ((after.cost - before.cost) / (after.bytes - before.bytes), after.bytes - before.bytes)
                for hull in hulls
                for before, after in pairwise(hull)
            ),
        )
        slopes, sizes = (np.array([step[column] for step in steps], float) for column in (0, 1))
        start = sum(hull[0].cost for hull in hulls)
        self._bytes = np.concatenate(([0.0], np.cumsum(sizes)))
        self._costs = start + np.concatenate(([0.0], np.cumsum(slopes * sizes)))

    def at_least(self, budget_bytes: np.ndarray) -> np.ndarray:
        """Lower bounds, elementwise; the budgets are at least ``least_bytes``."""
        bounds: np.ndarray = np.interp(budget_bytes - self.least_bytes, self._bytes, self._costs)
        return bounds

    def reached(self, budget_bytes: int) -> float:
        """The cost of a selection that fits: the last corner of the relaxation before the budget, where no group is
        mixed."""
        corner = int(np.searchsorted(self._bytes, budget_bytes - self.least_bytes, side="right")) - 1
        return float(self._costs[corner])


def _hull(group: Sequence[Choice]) -> list[Choice]:
    """The corners of the lower convex hull from the smallest choice to the cheapest one."""
    hull: list[Choice] = []
    for choice in sorted(group, key=lambda choice: (choice.bytes, choice.cost)):
        if hull and choice.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _above(first: Choice, middle: Choice, last: Choice) -> bool:
    """Whether ``middle`` lies on or above the line from ``first`` to ``last``."""
    return (middle.cost - first.cost) * (last.bytes - first.bytes) >= (last.cost - first.cost) * (
        middle.bytes - first.bytes
    )
