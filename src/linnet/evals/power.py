# SPDX-License-Identifier: Apache-2.0
"""How small a loss a question set could have shown: the power of McNemar's exact test, computed exactly."""

import numpy as np
from scipy import stats

POWER = 0.80
RESOLUTION = 0.05
"""The search ends at this share of one question."""


def detectable_loss(questions: int, discordant: int, significance: float) -> float:
    """The smallest accuracy loss that this many questions would reveal with 80 % power; 1.0 where none would be.

    Answers go on changing sides both ways as often as they did here (``discordant`` of ``questions``, half each way);
    the loss comes on top. The test is two-sided at ``significance``, already divided by the number of tests that share
    it. The exact test needs at least six lost answers and none gained at 5 %, so even an untouched set of 200 questions
    cannot show a loss of 1 %.
    """
    churn = discordant / questions
    most = 1.0 - churn / 2
    counts = np.arange(questions + 1)
    needed = stats.binom.isf(significance / 2, counts, 0.5) + 1
    if power(churn, most, needed) < POWER:
        return 1.0
    low, high = 0.0, most
    while high - low > RESOLUTION / questions:
        middle = (low + high) / 2
        low, high = (low, middle) if power(churn, middle, needed) >= POWER else (middle, high)
    return high


def power(churn: float, loss: float, needed: np.ndarray) -> float:
    """How likely the test finds the loss, summed over how many answers change sides and how many of these are lost.

    ``needed``: for 0, 1, 2 … changed answers, how many of them must be lost for the test to say so.
    """
    changed = min(churn + loss, 1.0)
    if changed == 0:
        return 0.0
    counts = np.arange(len(needed))
    found = stats.binom.sf(needed - 1, counts, min((churn / 2 + loss) / changed, 1.0))
    return float(np.sum(stats.binom.pmf(counts, len(needed) - 1, changed) * found))
