# SPDX-License-Identifier: Apache-2.0
"""The knapsack against brute force, and at the size of a real model."""

import itertools
import random
import time

import pytest

from linnet.compress.knapsack import Choice, choose


def total(groups, chosen):
    picked = [group[index] for group, index in zip(groups, chosen, strict=True)]
    return sum(choice.bytes for choice in picked), sum(choice.cost for choice in picked)


def brute_force(groups, budget):
    """(cost, bytes) of the best selection."""
    every = (total(groups, chosen) for chosen in itertools.product(*(range(len(group)) for group in groups)))
    return min((cost, size) for size, cost in every if size <= budget)


@pytest.mark.parametrize("seed", range(60))
def test_as_brute_force(seed):
    """Few distinct bytes and costs: ties, dominated choices and equal totals are frequent; some costs are negative."""
    chance = random.Random(seed)
    groups = [
        [Choice(chance.randint(1, 12), chance.randint(-2, 9) / 4) for _ in range(chance.randint(1, 4))]
        for _ in range(chance.randint(1, 6))
    ]
    least = sum(min(choice.bytes for choice in group) for group in groups)
    most = sum(max(choice.bytes for choice in group) for group in groups)
    for budget in range(least, most + 2):
        size, cost = total(groups, choose(groups, budget))
        assert (cost, size) == brute_force(groups, budget), budget


def test_what_cannot_fit_is_refused():
    with pytest.raises(ValueError, match="no selection fits 4 bytes"):
        choose([[Choice(2, 1.0), Choice(9, 0.0)], [Choice(3, 1.0)]], 4)
    assert choose([], 0) == []


def test_large_models_take_no_time():
    """80 blocks of four taps in four widths; the cost of bits falls about as it does: fourfold with each."""
    chance = random.Random(0)
    shapes = (8192 * 10240, 8192 * 8192, 8192 * 57344, 28672 * 8192)
    groups = [
        [Choice(bits * shape // 8 + shape // 64, chance.lognormvariate(0, 1.5) * 4.0**-bits) for bits in (2, 3, 4, 8)]
        for _ in range(80)
        for shape in shapes
    ]
    started = time.perf_counter()
    budget = sum(group[1].bytes for group in groups) + 12_345_678
    size, cost = total(groups, choose(groups, budget))
    assert time.perf_counter() - started < 20
    assert size <= budget
    assert cost < sum(group[1].cost for group in groups)
