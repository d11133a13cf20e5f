# SPDX-License-Identifier: Apache-2.0
"""What a step takes, learnt from the steps that were taken: the exchange rate between seconds and tokens.

Seconds = price · amount over five amounts of a step (`Work`, and one for the step itself): the weights are read once,
a row is multiplied by them, a row that is wanted as logits by the vocabulary too, a sequence's keys are read, and
rows meet keys. Recursive least squares (Kalman's filter with a random walk of the prices) under a prior: every amount
is scaled so that its price is about that of one row, give or take as much. The scales are rough shares of common
models; only the first steps depend on them. Uncertainty never grows beyond the prior, so an idle hour or a thousand
equal steps in a row do not blow it up; what has not been seen lately is believed a little less.

Deterministic: seconds come in as arguments. Bits of results never depend on it, only how prompts are cut.
"""

from math import sqrt
from typing import NamedTuple

from .plan import StepPlan

SCALES = (8.0, 1.0, 0.5, 1 / 2048, 1 / 4096)
"""Rows that one step, row, output row, key and (row, key) pair are taken for, before anything is known."""
FORGET = 1 / 512
"""How far uncertainty returns to the prior's in one step."""
NOISE = 0.05
"""Standard deviation of a step's seconds around the model, as a share of them, on a quiet machine. More is learnt from
errors of the last ERRORS steps or so that the model's own uncertainty does not explain: on a restless machine prices
follow slowly, and plans leave room."""
MOST_NOISE = 0.3
MARGIN = 1.7
"""Standard deviations a plan stays below its budget: about one step in twenty-two is longer."""
ERRORS = 16


class Work(NamedTuple):
    """Amounts of a step or a part of it."""

    rows: int = 0
    outputs: int = 0
    keys: int = 0
    pairs: int = 0

    @staticmethod
    def of(start: int, n: int, outputs: int) -> "Work":
        """Computing positions [start, start + n) of one request."""
        return Work(n, outputs, start + n, n * start + n * (n + 1) // 2)

    @staticmethod
    def of_plan(plan: StepPlan) -> "Work":
        """Computing all items of a step."""
        keys = sum(item.start + item.n for item in plan.items)
        pairs = sum(item.n * item.start + item.n * (item.n + 1) // 2 for item in plan.items)
        return Work(plan.total_tokens, plan.total_output_rows, keys, pairs)

    def plus(self, other: "Work") -> "Work":
        """Both."""
        return Work(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: "Work") -> "Work":
        """What is left without the other, which is a part of this."""
        return Work(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


class StepCost:
    """What a step will take, learnt from those that have been made."""

    def __init__(self) -> None:
        self._prices: list[float] = []  # seconds per scaled amount; empty: nothing has been measured
        self._covariance: list[list[float]] = []
        self._noise = NOISE**2  # a variance

    @property
    def known(self) -> bool:
        """Whether any step has been measured."""
        return bool(self._prices)

    def expect(self, work: Work) -> float:
        """Seconds that few steps of `work` exceed: mean and MARGIN standard deviations, of what the model does not know
        and of what steps differ by. Mutates nothing.
        """
        amounts = _scaled(work)
        spread = _dot(amounts, [_dot(row, amounts) for row in self._covariance])
        mean = _dot(self._prices, amounts)
        return mean + MARGIN * sqrt(max(spread, 0.0) + self._noise * mean**2)

    def more(self, work: Work) -> float:
        """Seconds by which `work` makes a step longer that is taken anyway: the mean. Mutates nothing."""
        return _dot(self._prices[1:], _scaled(work)[1:])

    def most_tokens(self, seconds: float, others: Work, start: int, most: int) -> int:
        """The most of the next `most` (≥ 1) tokens from `start` that, beside `others`, fit into `seconds`; at least 1.

        Mutates nothing.
        """
        fits, over = 1, most + 1
        while over - fits > 1:
            middle = most if over == most + 1 and fits == 1 else (fits + over) // 2
            if self.expect(others.plus(Work.of(start, middle, 0))) <= seconds:
                fits = middle
            else:
                over = middle
        return fits

    def learn(self, work: Work, seconds: float) -> None:
        """Take in that a step of `work` took `seconds` (> 0, or it is ignored). Mutates prices and uncertainty."""
        if seconds <= 0.0:
            return
        amounts = _scaled(work)
        unit = seconds / sum(amounts)
        if not self._prices:
            self._prices = [unit] * len(amounts)
            self._covariance = [[0.0] * len(amounts) for _ in amounts]
            self._forget(1.0, unit)
        self._forget(FORGET, unit)
        seen = [_dot(row, amounts) for row in self._covariance]
        error = seconds - _dot(self._prices, amounts)
        spread = _dot(seen, amounts)
        total = spread + self._noise * seconds**2
        unexplained = min(max(error**2 - spread, 0.0) / seconds**2, MOST_NOISE**2)
        self._noise = max(self._noise + (unexplained - self._noise) / ERRORS, NOISE**2)
        self._prices = [
            max(price + column / total * error, 0.0) for price, column in zip(self._prices, seen, strict=True)
        ]
        self._covariance = [
            [value - left / total * right for value, right in zip(row, seen, strict=True)]
            for row, left in zip(self._covariance, seen, strict=True)
        ]

    def _forget(self, share: float, unit: float) -> None:
        """Move that far towards the prior: independent prices of `unit` seconds, give or take as much."""
        self._prices = [price + share * (unit - price) for price in self._prices]
        self._covariance = [[(1.0 - share) * value for value in row] for row in self._covariance]
        for index, row in enumerate(self._covariance):
            row[index] += share * unit**2


def _scaled(work: Work) -> list[float]:
    return [scale * amount for scale, amount in zip(SCALES, (1, *work), strict=True)]


def _dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
