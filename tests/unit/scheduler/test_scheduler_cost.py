# SPDX-License-Identifier: Apache-2.0
"""The cost model learns what steps take, whatever the machine, and errs on the slow side where it has seen little."""

import random

import pytest

from linnet.scheduler import Sample, StepItem, StepPlan
from linnet.scheduler.cost import StepCost, Work


def seconds(work: Work, step: float = 0.009, row: float = 0.0014, output: float = 0.001, key: float = 4e-7) -> float:
    """A linear machine."""
    return step + row * work.rows + output * work.outputs + key * work.keys + 1e-7 * work.pairs


def decoding(sequences: int, context: int) -> Work:
    return Work(sequences, sequences, sequences * context, sequences * context)


def test_work_adds_up() -> None:
    assert Work.of(10, 3, 1) == Work(3, 1, 13, 11 + 12 + 13)
    both = Work.of(10, 3, 1).plus(Work.of(0, 1, 1))
    assert both == Work(4, 2, 14, 37)
    assert both.minus(Work.of(0, 1, 1)) == Work.of(10, 3, 1)
    items = tuple(
        StepItem(index, start, n, (7,) * n, ((),), (Sample(n - 1),) * outputs)
        for index, (start, n, outputs) in enumerate(((10, 3, 1), (0, 5, 0)))
    )
    assert Work.of_plan(StepPlan(0, items, 8)) == Work.of(10, 3, 1).plus(Work.of(0, 5, 0))


def test_one_step_gives_the_scale() -> None:
    cost = StepCost()
    assert not cost.known
    cost.learn(decoding(4, 100), 0.0)
    assert not cost.known, "a clock that stands still says nothing"
    cost.learn(decoding(4, 100), 2.0)
    assert cost.known
    assert 2.0 <= cost.expect(decoding(4, 100)) < 2.4


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_prompts_are_cut_to_the_budget_on_any_machine(scale: float) -> None:
    """From the fourth chunk on, steps take between 85 and 105 % of what was asked for, for all of a long prompt."""
    cost, rng, position = StepCost(), random.Random(5), 0
    cost.learn(Work.of(0, 256, 1), scale * seconds(Work.of(0, 256, 1)))
    taken = []
    for step in range(300):
        others = decoding(8, 100 + step)
        n = cost.most_tokens(0.1 * scale, others, position, 512)
        work = others.plus(Work.of(position, n, 0))
        taken.append(seconds(work) * rng.uniform(0.98, 1.02))
        cost.learn(work, scale * taken[-1])
        position += n
    assert all(value <= 0.105 for value in taken)
    assert all(value >= 0.085 for value in taken[3:])


def test_after_thousands_of_equal_steps_the_first_chunk_is_careful() -> None:
    cost = StepCost()
    for step in range(5000):
        work = decoding(8, 100 + step)
        cost.learn(work, seconds(work, key=0))
    others = decoding(8, 5100)
    n = cost.most_tokens(0.1, others, 0, 512)
    assert n >= 8
    assert seconds(others.plus(Work.of(0, n, 0)), key=0) <= 0.105


def test_a_slower_machine_is_noticed_within_three_steps() -> None:
    cost, over = StepCost(), 0
    for step in range(200):
        slow = 1.6 if step >= 100 else 1.0
        others = decoding(8, 100 + step)
        work = others.plus(Work.of(0, cost.most_tokens(0.1, others, 0, 512) if step else 16, 0))
        cost.learn(work, slow * seconds(work))
        over += step > 3 and slow * seconds(work) > 0.105
    assert over <= 3


def test_the_most_tokens_are_at_least_one_and_at_most_what_is_asked_for() -> None:
    cost = StepCost()
    cost.learn(decoding(8, 100), 0.03)
    assert cost.most_tokens(1e-9, decoding(8, 100), 0, 512) == 1
    assert cost.most_tokens(1e9, decoding(8, 100), 0, 512) == 512
    assert cost.most_tokens(1e9, Work(), 0, 1) == 1
    for most in range(1, 40):
        n = cost.most_tokens(0.06, decoding(8, 100), 0, most)
        assert n == min(most, cost.most_tokens(0.06, decoding(8, 100), 0, 512))


def test_it_is_deterministic_and_prices_never_become_negative() -> None:
    def run() -> list[float]:
        cost, rng, expected = StepCost(), random.Random(11), []
        for _ in range(2000):
            work = Work.of(rng.randrange(2000), rng.randrange(1, 200), rng.randrange(3))
            cost.learn(work, rng.uniform(0.0, 0.5))
            expected.append(cost.expect(Work.of(rng.randrange(2000), rng.randrange(1, 200), 0)))
        return expected

    first = run()
    assert first == run()
    assert all(value > 0 for value in first)
