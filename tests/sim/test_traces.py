# SPDX-License-Identifier: Apache-2.0
"""What policies and continuous batching are worth on loads with real traces' lengths, in virtual time.

bench/traces.py and bench/batching.py measure the same on the traces themselves. Failures name the seed of the load.
"""

from dataclasses import replace
from statistics import fmean

import pytest
from replay import Asked, DynamicBatches, Gate, Replay, StaticBatches, VirtualWorld, replay
from trace_lengths import CODE_ANSWERS, CODE_PROMPTS, TALK_ANSWERS, TALK_PROMPTS, at_rate, chat, load

from linnet.scheduler import SchedulerConfig, StepPlan
from linnet.scheduler.cost import Work

SEEDS = (1, 2)


def step_s(plan: StepPlan) -> float:
    """About a model of 100 million parameters on two cores."""
    work = Work.of_plan(plan)
    return 0.008 + 4e-4 * work.rows + 2e-6 * work.keys + 1e-7 * work.pairs


def config(**fields: object) -> SchedulerConfig:
    base: dict[str, object] = {"num_blocks": 512, "max_model_len": 1024, "token_budget": 128, "max_sequences": 16}
    return SchedulerConfig(**(base | fields))  # type: ignore[arg-type]


def code(seed: int, count: int = 150) -> list[Asked]:
    return load(seed, count, CODE_PROMPTS, CODE_ANSWERS)


def talk(seed: int, count: int = 150) -> list[Asked]:
    return load(seed, count, TALK_PROMPTS, TALK_ANSWERS, divisor=64)


def played(asked: list[Asked], settings: SchedulerConfig, gate: Gate | None = None) -> Replay:
    return replay(VirtualWorld(settings, step_s), asked, gate)


def capacity(asked: list[Asked], settings: SchedulerConfig) -> float:
    """Requests a second when all are there at once."""
    return len(asked) / played([replace(one, arrival_s=0.0) for one in asked], settings).end_s


def mean_s(found: Replay) -> float:
    return fmean(one.completion_s for one in found.felt)


def median_s(found: Replay) -> float:
    return sorted(one.completion_s for one in found.felt)[len(found.felt) // 2]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [code, talk])
def test_beyond_capacity_short_first_is_better_than_first_come_first_served(kind, seed: int) -> None:  # type: ignore[no-untyped-def]
    """FastServe's and HCF's claim: without knowing lengths (mlfq), and with guesses (shortest)."""
    asked = kind(seed)
    asked = at_rate(asked, 1.2 * capacity(asked, config()))
    fcfs = played(asked, config())
    for policy in ("mlfq", "shortest"):
        found = played(asked, config(policy=policy))
        assert mean_s(found) < 0.9 * mean_s(fcfs), f"{policy}, seed {seed}"
        assert found.computed_again < 0.02 * sum(one.prompt_tokens + one.new_tokens for one in asked), f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("share", "mean", "median", "first"), [(0.9, 1.02, 1.02, 1.0), (1.1, 1.0, 0.9, 0.7)])
def test_making_way_is_never_dear(seed: int, share: float, mean: float, median: float, first: float) -> None:
    """Short prompts and answers of which few are very long: where taking the long ones' places pays, and costs.

    Preempting whoever comes later, whatever it loses, was worse than first come first served by a fifth.
    """
    asked = chat(seed, 250)
    asked = at_rate(asked, share * capacity(asked, config()))
    fcfs, mlfq = played(asked, config()), played(asked, config(policy="mlfq"))
    assert mean_s(mlfq) < mean * mean_s(fcfs), f"seed {seed}"
    assert median_s(mlfq) < median * median_s(fcfs), f"seed {seed}"
    first_s = [fmean(one.first_token_s for one in found.felt) for found in (mlfq, fcfs)]
    assert first_s[0] < first * first_s[1], f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fair_share_bounds_the_service_gap(seed: int) -> None:
    """VTC's bound (Theorem 4.3): while both wait, nobody gets more than 2 max(prompt, 2 * slots) beyond another."""
    asked = [replace(one, tenant=b"modest" if index % 11 == 0 else b"greedy") for index, one in enumerate(code(seed))]
    asked = at_rate(asked, 2.0 * capacity(asked, config()))
    modest = {}
    for policy in ("fcfs", "fair"):
        found = played(asked, config(policy=policy))
        modest[policy] = fmean(one.completion_s for one in found.felt if one.asked.tenant == b"modest")
        if policy == "fair":
            assert gap(found) <= 2 * 2 * 512 * 16, f"seed {seed}"
    assert modest["fair"] < 0.5 * modest["fcfs"], f"seed {seed}"


def gap(found: Replay) -> float:
    """The widest difference of service between the two tenants while both have somebody who waits."""
    moments = [(one.asked.arrival_s, 0, one.asked.tenant, 1) for one in found.felt]
    moments += [(one.begun_s, 2, one.asked.tenant, -1) for one in found.felt]
    moments += [(when, 1, tenant, weight) for when, tenant, weight in found.served]
    waiting = {b"greedy": 0, b"modest": 0}
    ahead = least = most = widest = 0
    for _, kind, tenant, amount in sorted(moments, key=lambda moment: moment[:2]):
        if kind == 1:
            ahead += amount if tenant == b"greedy" else -amount
        else:
            waiting[tenant] += amount
        if not all(waiting.values()):
            ahead = least = most = 0
        least, most = min(least, ahead), max(most, ahead)
        widest = max(widest, most - least)
    return widest


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [code, talk])
def test_less_than_a_twenty_fifth_of_kv_memory_is_wasted(kind, seed: int) -> None:  # type: ignore[no-untyped-def]
    """vLLM's claim; whoever reserves the longest length wastes two thirds."""
    asked = kind(seed)
    found = played(asked, config())
    assert 0 < found.waste < 0.04, f"seed {seed}"
    reserved = 1 - fmean((one.asked.prompt_tokens + one.tokens - 1) / 1024 for one in found.felt)
    assert reserved > 0.6, f"seed {seed}"


@pytest.mark.parametrize("seed", SEEDS)
def test_continuous_batching_answers_sooner_than_batches_that_are_formed(seed: int) -> None:
    """Orca's claim, at a rate that all can keep, in equal KV memory: eight whole contexts."""
    asked = talk(seed, 120)
    asked = at_rate(asked, 0.5 * capacity(asked, config(max_sequences=8)))
    means = {
        "static": mean_s(played(asked, config(max_sequences=8), StaticBatches(8))),
        "dynamic": mean_s(played(asked, config(max_sequences=8), DynamicBatches(8, 0.5))),
        "continuous": mean_s(played(asked, config(max_sequences=64))),
    }
    assert means["continuous"] < 0.5 * means["dynamic"], f"{means}, seed {seed}"
    assert means["continuous"] < 0.5 * means["static"], f"{means}, seed {seed}"


def test_gates_hand_over_when_they_should() -> None:
    waiting = [Asked(1.0, 8, 8), Asked(1.2, 8, 8), Asked(1.4, 8, 8)]
    static, dynamic = StaticBatches(4), DynamicBatches(4, 0.5)
    assert static.ready(waiting, idle=True, more=True, now=9.0) == 0, "not enough"
    assert static.ready(waiting, idle=True, more=False, now=9.0) == 3, "the last batch"
    assert StaticBatches(2).ready(waiting, idle=True, more=True, now=1.4) == 2
    assert StaticBatches(2).ready(waiting, idle=False, more=True, now=1.4) == 0, "one batch at a time"
    assert dynamic.ready(waiting, idle=True, more=True, now=1.4) == 0, "the window is open"
    assert dynamic.ready(waiting, idle=True, more=True, now=1.5) == 3
    assert DynamicBatches(2, 0.5).ready(waiting, idle=True, more=True, now=1.4) == 2, "full"
    assert Gate().ready(waiting, idle=False, more=True, now=1.4) == 3


def test_a_batch_is_answered_when_it_is_done() -> None:
    asked = [Asked(0.0, 8, 2), Asked(0.0, 8, 30), Asked(0.0, 8, 3)]
    found = played(asked, config(), StaticBatches(2))
    assert found.felt[0].last_s == found.felt[1].last_s < found.felt[2].first_s
    alone = played(asked, config())
    assert alone.felt[0].last_s < 0.2 * alone.felt[1].last_s
