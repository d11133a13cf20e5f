# SPDX-License-Identifier: Apache-2.0
"""The statistics of loss: intervals, paired tests, and how small a loss the set could have seen.

Everything is paired (both models answer the same questions, read the same text), because pairing removes the variance
between questions, which is far larger than the effect of a quantisation. Bootstrap generators are seeded: the same
scores always give the same interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from linnet.evals.power import detectable_loss

Verdict = Literal["worse", "same", "better"]

BOOTSTRAP_RESAMPLES = 2000
CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
FEW_CLUSTERS = 20
"""Below this many clusters a bootstrap is too narrow (ten of them: by a fifth); Student's t says what is known."""


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its 95 % interval; no bounds where one sample cannot give any."""

    value: float
    low: float | None
    high: float | None

    def map(self, function: Callable[[float], float]) -> "Interval":
        """The interval of a rising function of the value."""
        low, high = (None if bound is None else function(bound) for bound in (self.low, self.high))
        return Interval(function(self.value), low, high)

    def within(self, least: float, most: float) -> "Interval":
        """Bounds no further than what the quantity can be."""
        return self.map(lambda number: min(max(number, least), most))


@dataclass(frozen=True)
class PairedTest:
    """McNemar's exact test on paired right/wrong answers, and the loss this many questions could detect."""

    lost: int
    gained: int
    p_value: float
    difference: Interval
    minimum_detectable_loss: float


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927); well behaved near 0 and 1."""
    if trials <= 0:
        raise ValueError(f"a proportion needs at least one trial, got {trials}")
    result = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / trials, float(result.low), float(result.high))


def bootstrap_interval(
    samples: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0
) -> Interval:
    """Percentile bootstrap over *clusters* (windows, documents), which keeps correlated tokens together.

    ``samples``: one array a cluster of per-cluster sums, all of the same width. ``statistic`` maps the summed
    clusters ``[resamples, width]`` to values ``[resamples]`` (a ratio of sums is a mean per token).
    """
    table = np.stack([np.asarray(sample, dtype=np.float64) for sample in samples])
    value = float(statistic(table.sum(axis=0, keepdims=True))[0])
    if len(table) < 2:
        return Interval(value, None, None)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(table), np.full(len(table), 1 / len(table)), size=BOOTSTRAP_RESAMPLES)
    values = statistic(counts @ table)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def mean_interval(samples: Sequence[np.ndarray]) -> Interval:
    """The mean over all numbers of all clusters (windows, documents), each cluster one array.

    Bootstrap over the clusters; Student's t of the leave-one-out values (jackknife, Tukey 1958) where they are few;
    no bounds from one cluster: what varies between clusters was not seen.
    """
    table = np.array([[np.sum(sample, dtype=np.float64), len(sample)] for sample in samples])
    if len(table) >= FEW_CLUSTERS:
        return bootstrap_interval(list(table), lambda sums: sums[:, 0] / sums[:, 1])
    total = table.sum(axis=0)
    value = float(total[0] / total[1])
    if len(table) < 2:
        return Interval(value, None, None)
    without = (total - table)[:, 0] / (total - table)[:, 1]
    clusters = len(table)
    error = float(np.sqrt((clusters - 1) / clusters * np.sum((without - without.mean()) ** 2)))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, clusters - 1)) * error
    return Interval(value, value - reach, value + reach)


def paired_test(reference: np.ndarray, candidate: np.ndarray, seed: int = 0, tests: int = 1) -> PairedTest:
    """Compare two boolean arrays of the same questions.

    Discordant pairs under "no change" are a fair coin (McNemar 1947, exact form). The detectable loss is the accuracy
    drop that this number of questions would reveal with 80 % power at 5 %, at the discordance seen here; ``tests``
    share the 5 %, as Holm's first step has it.
    """
    if reference.shape != candidate.shape or reference.ndim != 1 or not len(reference):
        raise ValueError(f"paired answers must be equal in number: {reference.shape} and {candidate.shape}")
    lost = int(np.sum(reference & ~candidate))
    gained = int(np.sum(~reference & candidate))
    discordant = lost + gained
    p_value = float(stats.binomtest(lost, discordant).pvalue) if discordant else 1.0
    detectable = detectable_loss(len(reference), discordant, SIGNIFICANCE / tests)
    return PairedTest(lost, gained, p_value, _difference(lost, gained, len(reference), seed), detectable)


def _difference(lost: int, gained: int, count: int, seed: int) -> Interval:
    """Bootstrap of the accuracy difference over questions, which are of three kinds: lost, gained, the rest."""
    shares = np.array([lost, gained, count - lost - gained]) / count
    drawn = np.random.default_rng(seed).multinomial(count, shares, size=BOOTSTRAP_RESAMPLES)
    low, high = np.quantile((drawn[:, 1] - drawn[:, 0]) / count, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval((gained - lost) / count, float(low), float(high))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979): several abilities are tested, one lucky draw must not decide."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return [float(value) for value in adjusted]


def verdict(difference: float, adjusted_p_value: float) -> Verdict:
    """The word a person reads: a difference counts only when the adjusted test says so."""
    if adjusted_p_value >= SIGNIFICANCE:
        return "same"
    return "worse" if difference < 0 else "better"
