# SPDX-License-Identifier: Apache-2.0
"""The scheduler in virtual time: a step costs `overhead + tokens x price`. What users feel, without a model."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from linnet.scheduler import Request, Scheduler, SchedulerConfig, StepResult, Tokens

OVERHEAD_S = 0.010
TOKEN_S = 0.001


@dataclass
class Timeline:
    """When each request got its tokens, and when all was over."""

    token_times_s: dict[int, list[float]] = field(default_factory=dict)
    end_s: float = 0.0

    def first_s(self, request_id: int) -> float:
        return self.token_times_s[request_id][0]

    def longest_gap_s(self, request_id: int) -> float:
        times = self.token_times_s[request_id]
        return max(later - earlier for earlier, later in pairwise(times))


def run_in_virtual_time(scheduler: Scheduler, requests: list[Request], token_s: float = TOKEN_S) -> Timeline:
    """Requests arrive at their arrival_s; the clock jumps over idle time and by the cost of every step."""
    timeline, now = Timeline(), 0.0
    coming = sorted(requests, key=lambda request: request.arrival_s)
    while coming or scheduler.has_work:
        while coming and coming[0].arrival_s <= now:
            scheduler.add(coming.pop(0))
        plan = scheduler.schedule(now)
        if plan is None:
            now = max(now, coming[0].arrival_s) if coming else now
            continue
        now += OVERHEAD_S + token_s * plan.total_tokens
        result = StepResult.of({item.request_id: (7,) for item in plan.items if item.most_tokens})
        for event in scheduler.commit(plan, result, now):
            if isinstance(event, Tokens):
                timeline.token_times_s.setdefault(event.request_id, []).extend([now] * len(event.token_ids))
        scheduler.check()
    timeline.end_s = now
    return timeline


def config(**fields: object) -> SchedulerConfig:
    base: dict[str, object] = {"num_blocks": 4096, "max_model_len": 8192, "token_budget": 128, "max_sequences": 32}
    return SchedulerConfig(**(base | fields))  # type: ignore[arg-type]


def request(request_id: int, prompt_tokens: int, new_tokens: int, arrival_s: float = 0.0, priority: int = 0) -> Request:
    prompt = tuple(range(request_id * 10_000, request_id * 10_000 + prompt_tokens))
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        max_new_tokens=new_tokens,
        arrival_s=arrival_s,
        priority=priority,
    )


def test_a_long_prompt_stalls_decoding_by_one_budget_at_most() -> None:
    """Chunked prefill: whoever is decoding gets a token in every step, and a step costs at most the budget."""
    requests = [request(0, 16, 60), request(1, 4000, 4, arrival_s=0.2)]
    chunked = run_in_virtual_time(Scheduler(config()), requests)
    assert chunked.longest_gap_s(0) <= OVERHEAD_S + 128 * TOKEN_S + 1e-9
    requests = [request(0, 16, 60), request(1, 4000, 4, arrival_s=0.2)]
    whole = run_in_virtual_time(Scheduler(config(token_budget=8192)), requests)
    assert whole.longest_gap_s(0) >= 4000 * TOKEN_S


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_budget_of_seconds_holds_whatever_a_token_costs(policy: str) -> None:
    """Nobody who decodes waits longer than the budget, and the prompt gets the rest of it, whoever comes first."""
    for price in (0.1, 1.0, 5.0):
        requests = [request(index, 16, 400, priority=1) for index in range(4)]
        requests.append(request(4, 2000, 2, arrival_s=1.0))
        settings = config(token_budget=1024, step_budget_s=0.1, policy=policy)
        timeline = run_in_virtual_time(Scheduler(settings), requests, token_s=price * TOKEN_S)
        for index in range(4):
            assert timeline.longest_gap_s(index) <= 0.1
        least = OVERHEAD_S + 4 * price * TOKEN_S
        assert timeline.first_s(4) - 1.0 <= 2000 * price * TOKEN_S * 0.1 / (0.1 - least) * 1.1 + 0.5


def test_a_budget_of_seconds_nobody_can_keep_still_lets_prompts_in() -> None:
    """Decoding alone takes longer than the budget: a prompt gets a quarter of the budget, not nothing."""
    requests = [request(index, 16, 1000) for index in range(16)]
    requests.append(request(16, 500, 2, arrival_s=1.0))
    timeline = run_in_virtual_time(Scheduler(config(token_budget=1024, step_budget_s=0.02)), requests)
    assert timeline.first_s(16) - 1.0 <= 500 / (0.25 * 0.02 / TOKEN_S - 2) * (OVERHEAD_S + 21 * TOKEN_S)
    longest = max(timeline.longest_gap_s(index) for index in range(16))
    assert longest <= 1.05 * (OVERHEAD_S + 16 * TOKEN_S + 0.25 * 0.02)


def test_a_prompt_that_nobody_waits_for_has_whole_steps() -> None:
    """The budget of seconds is for those who decode; a lone prompt is computed in as few steps as ever."""
    scheduler = Scheduler(config(token_budget=1024, step_budget_s=0.05))
    run_in_virtual_time(scheduler, [request(0, 4096, 1), request(1, 4096, 1, arrival_s=60.0)])
    assert scheduler.counters().steps == 8


def test_many_prompts_at_once_do_not_stall_who_decodes() -> None:
    requests = [request(0, 16, 300), *(request(index, 64, 4, arrival_s=1.0) for index in range(1, 20))]
    timeline = run_in_virtual_time(Scheduler(config(token_budget=1024, step_budget_s=0.1)), requests)
    assert timeline.longest_gap_s(0) <= 0.1


def test_a_smaller_chunk_lets_others_start_beside_a_long_prompt() -> None:
    requests = [request(0, 2000, 4), *(request(index, 8, 20, arrival_s=0.001 * index) for index in range(1, 9))]
    timeline = run_in_virtual_time(Scheduler(config(max_chunk_tokens=64)), requests)
    for index in range(1, 9):
        assert timeline.first_s(index) < timeline.first_s(0)


def test_who_comes_first_leaves_a_token_for_everyone_behind() -> None:
    """A more important prompt is planned before those who are decoding, and still may not stall them."""
    requests = [request(index, 8, 40, priority=5) for index in range(8)]
    requests.append(request(8, 2000, 4, arrival_s=0.2, priority=0))
    timeline = run_in_virtual_time(Scheduler(config(policy="priority")), requests)
    assert timeline.first_s(8) < timeline.end_s
    for index in range(8):
        assert timeline.longest_gap_s(index) <= OVERHEAD_S + 128 * TOKEN_S + 1e-9


def test_first_come_first_served() -> None:
    requests = [request(index, 64, 8, arrival_s=0.001 * index) for index in range(12)]
    timeline = run_in_virtual_time(Scheduler(config(max_sequences=2)), list(reversed(requests)))
    first_times = [timeline.first_s(index) for index in range(12)]
    assert first_times == sorted(first_times)


def test_priority_overtakes_in_the_queue() -> None:
    requests = [request(index, 64, 16, arrival_s=0.001 * index, priority=5) for index in range(6)]
    requests.append(request(6, 64, 16, arrival_s=0.05, priority=0))
    timeline = run_in_virtual_time(Scheduler(config(max_sequences=1, policy="priority")), requests)
    assert sorted(range(7), key=timeline.first_s) == [0, 6, 1, 2, 3, 4, 5]


def test_a_shared_prefix_is_computed_once() -> None:
    """Followers of a long system prompt wait for their own tokens only."""
    system = tuple(range(1600))

    def followers() -> list[Request]:
        return [
            Request(request_id=index, prompt_token_ids=(*system, index), max_new_tokens=4, arrival_s=10.0 * index)
            for index in range(5)
        ]

    cold = run_in_virtual_time(Scheduler(config(prefix_cache=False)), followers())
    scheduler = Scheduler(config())
    warm = run_in_virtual_time(scheduler, followers())
    for index in range(1, 5):
        assert cold.first_s(index) - 10.0 * index > 1600 * TOKEN_S
        assert warm.first_s(index) - 10.0 * index == pytest.approx(OVERHEAD_S + TOKEN_S)
    counters = scheduler.counters()
    assert counters.prefix_query_tokens == 5 * 1601
    assert counters.prefix_hit_tokens == 4 * 1600


def test_batching_shares_the_overhead() -> None:
    """Twenty requests together take less time than one after another."""
    together = run_in_virtual_time(Scheduler(config()), [request(index, 32, 32) for index in range(20)])
    one_by_one = run_in_virtual_time(
        Scheduler(config(max_sequences=1)), [request(index, 32, 32) for index in range(20)]
    )
    assert together.end_s < 0.25 * one_by_one.end_s


def test_a_full_pool_costs_time_but_keeps_working() -> None:
    """Sixteen clients in a pool for three: recomputes are paid, and bounded by the headroom rule at admission."""
    scheduler = Scheduler(config(num_blocks=12, max_model_len=64, token_budget=64, prefix_cache=False))
    run_in_virtual_time(scheduler, [request(index, 20, 40) for index in range(16)])
    counters = scheduler.counters()
    assert counters.finished == {"length": 16}
    assert counters.computed_tokens < 2 * 16 * 60
