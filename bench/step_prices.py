# SPDX-License-Identifier: Apache-2.0
"""What a step of an engine takes, fitted to steps that were measured: the clock of virtual time.

Seconds = the sum of price · amount. The amounts are those that the scheduler itself learns from (one step, its rows,
rows that are wanted as logits, keys read, pairs of row and key) and one that only costs the interpreter time: requests
in the step. Prices are not negative; they are found by least squares of *relative* errors, so that short steps count as
much as long ones.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from linnet.scheduler import StepPlan
from linnet.scheduler.cost import Work

Amounts = tuple[float, ...]
Sample = tuple[Amounts, float]
PRICES = Path(__file__).resolve().parent / "results" / "step_prices.json"
"""Of the machine that docs/scheduler.md was measured on."""
NAMES = ("step", "row", "output", "key", "pair", "request")


def amounts_of(plan: StepPlan) -> Amounts:
    """Of a step."""
    return (1.0, *map(float, Work.of_plan(plan)), float(len(plan.items)))


@dataclass(frozen=True)
class Prices:
    """Of one engine. spread: median relative error of a step; samples: how many steps they were fitted to."""

    model: str
    seconds: dict[str, float]
    spread: float = 0.0
    samples: int = 0

    def of(self, amounts: Amounts) -> float:
        """Seconds of a step."""
        return sum(self.seconds[name] * amount for name, amount in zip(NAMES, amounts, strict=True))

    def step_s(self, plan: StepPlan) -> float:
        """What the step of a plan takes in virtual time."""
        return self.of(amounts_of(plan))

    def alone_s(self, prompt_tokens: int, new_tokens: int, token_budget: int) -> float:
        """What a request takes that has the engine to itself."""
        total = 0.0
        for start in range(0, prompt_tokens, token_budget):
            n = min(token_budget, prompt_tokens - start)
            total += self.of((1.0, *map(float, Work.of(start, n, int(start + n == prompt_tokens))), 1.0))
        steps = new_tokens - 1
        keys = steps * prompt_tokens + steps * (steps + 1) // 2
        return total + self.of((steps, steps, steps, keys, keys, steps))

    def save(self, file: Path) -> None:
        """Into a file of prices by model, beside those that are there."""
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        known[self.model] = asdict(self)
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(file: Path, model: str) -> "Prices":
        """Of the model of that name."""
        return Prices(**json.loads(file.read_text(encoding="utf-8"))[model])


def fit(model: str, samples: Sequence[Sample], passes: int = 4) -> Prices:
    """Prices by least squares of relative errors. Each pass weighs by what the last one expected of a step."""
    amounts = np.array([sample[0] for sample in samples])
    seconds = np.array([sample[1] for sample in samples])
    expected = seconds
    for _ in range(passes):
        found, _ = nnls(amounts / expected[:, None], seconds / expected)
        expected = amounts @ found
    spread = float(np.median(np.abs(seconds / expected - 1)))
    return Prices(model, dict(zip(NAMES, map(float, found), strict=True)), spread, len(samples))
