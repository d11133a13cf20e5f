# SPDX-License-Identifier: Apache-2.0
"""Loads with the lengths of real traces, which are not needed here: quantiles are enough to draw from."""

from collections.abc import Sequence
from dataclasses import replace
from math import exp, log
from random import Random

from replay import Asked

SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
CODE_PROMPTS = (3, 17, 75, 147, 578, 1469, 2745, 5194, 7315, 7436, 7437)
CODE_ANSWERS = (6, 6, 6, 7, 9, 13, 24, 55, 90, 252, 1899)
"""Azure LLM inference trace, code, 2023-11 (Patel et al., Splitwise, ISCA 2024): tokens at SHARES."""
TALK_PROMPTS = (13, 16, 22, 30, 277, 11587, 23175, 38615, 49009, 66458, 191378)
TALK_ANSWERS = (1, 2, 2, 4, 11, 69, 250, 389, 519, 769, 893)
"""Mooncake synthetic trace (Qin et al., Mooncake, FAST 2025): tokens at SHARES."""


def drawn(random: Random, lengths: Sequence[int]) -> int:
    """A length: between quantiles, its logarithm is evenly spread."""
    share = random.random()
    after = next(place for place, known in enumerate(SHARES) if share < known)
    part = (share - SHARES[after - 1]) / (SHARES[after] - SHARES[after - 1])
    low, high = log(lengths[after - 1]), log(lengths[after])
    return max(round(exp(low + part * (high - low))), 1)


def load(
    seed: int,
    count: int,
    prompts: Sequence[int],
    answers: Sequence[int],
    *,
    divisor: int = 8,
    most_new: int = 128,
    longest_tokens: int = 1024,
) -> list[Asked]:
    """Requests at one a second on average (Poisson), prompts a `divisor`-th as long as the trace's."""
    random = Random(seed)
    made: list[Asked] = []
    now = 0.0
    while len(made) < count:
        prompt, new = max(drawn(random, prompts) // divisor, 1), min(drawn(random, answers), most_new)
        if prompt + most_new <= longest_tokens:
            made.append(Asked(now, prompt, new, most_tokens=most_new))
            now += random.expovariate(1.0)
    return made


def at_rate(asked: Sequence[Asked], per_s: float) -> list[Asked]:
    """The same, so many a second."""
    return [replace(one, arrival_s=one.arrival_s / per_s) for one in asked]


def chat(seed: int, count: int) -> list[Asked]:
    """Short prompts; answers with a heavy tail, of which the longest are ten times as long as most. One a second."""
    random = Random(seed)
    made: list[Asked] = []
    now = 0.0
    while len(made) < count:
        prompt = int(random.lognormvariate(4.5, 0.8)) + 4
        new = min(int(random.lognormvariate(4.2, 1.2)) + 1, 700)
        if prompt < 300:
            made.append(Asked(now, prompt, new, most_tokens=700))
            now += random.expovariate(1.0)
    return made
