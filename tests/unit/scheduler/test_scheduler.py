# SPDX-License-Identifier: Apache-2.0
"""The scheduler step by step: what is planned, what a result changes, how requests end."""

import pytest

from linnet.errors import CapacityError, ConfigError
from linnet.scheduler import (
    BlockMove,
    Ended,
    Event,
    InvariantError,
    Request,
    RequestState,
    Sample,
    Scheduler,
    SchedulerConfig,
    Score,
    StepItem,
    StepPlan,
    StepResult,
    Tokens,
    Verify,
)


def scheduler(**fields: object) -> Scheduler:
    base: dict[str, object] = {"num_blocks": 16, "block_size": 4, "max_model_len": 64, "token_budget": 16}
    return Scheduler(SchedulerConfig(**({**base, "max_sequences": 4} | fields)))  # type: ignore[arg-type]


def request(request_id: int = 0, prompt: int = 6, new: int = 3, **fields: object) -> Request:
    token_ids = tuple(range(100 * request_id, 100 * request_id + prompt))
    return Request(request_id=request_id, prompt_token_ids=token_ids, max_new_tokens=new, **fields)  # type: ignore


def step(one: Scheduler, token_id: int = 7, now: float = 0.0) -> tuple[StepPlan, tuple[Event, ...]]:
    """One whole step in which every sampling item gets `token_id`."""
    plan = one.schedule(now)
    one.check()
    assert plan is not None
    result = StepResult.of({item.request_id: (token_id,) for item in plan.items if item.most_tokens})
    events = one.commit(plan, result, now)
    one.check()
    return plan, events


def finish(one: Scheduler) -> list[Event]:
    events: list[Event] = []
    while one.has_work:
        events += step(one)[1]
    return events


def test_one_request_from_prompt_to_length() -> None:
    one = scheduler()
    one.add(request())
    plan, events = step(one)
    (item,) = plan.items
    blocks = item.blocks
    assert item == StepItem(0, 0, 6, (0, 1, 2, 3, 4, 5), blocks, (Sample(5),))
    assert (plan.step, plan.total_tokens, plan.total_output_rows, plan.preempted) == (0, 6, 1, ())
    assert len(blocks[0]) == 2
    assert events == (Tokens(0, (7,)),)
    plan, events = step(one, token_id=8)
    assert plan.items == (StepItem(0, 6, 1, (7,), blocks, (Sample(0),)),)
    plan, events = step(one, token_id=9)
    assert events == (Tokens(0, (9,)), Ended(0, "length"))
    assert not one.has_work
    assert one.schedule(0.0) is None
    assert one.counters().finished == {"length": 1}
    assert one.counters().used_blocks == 0


def test_a_stop_token_is_reported_and_ends() -> None:
    one = scheduler()
    subject = request(stop_token_ids=frozenset({42}))
    one.add(subject)
    assert step(one, token_id=42)[1] == (Tokens(0, (42,)), Ended(0, "stop"))
    assert subject.generated_token_ids == (42,)
    assert subject.finish_reason == "stop"


def test_a_prompt_is_read_in_chunks_within_the_budget() -> None:
    one = scheduler(token_budget=4)
    one.add(request(prompt=10))
    chunks = []
    for _ in range(3):
        plan, events = step(one)
        (item,) = plan.items
        chunks.append((item.start, item.n, item.most_tokens, item.output_offsets, len(item.blocks[0])))
    assert chunks == [(0, 4, 0, (), 1), (4, 4, 0, (), 2), (8, 2, 1, (1,), 3)]
    assert events == (Tokens(0, (7,)),)


def test_running_requests_come_before_waiting_ones() -> None:
    one = scheduler()
    one.add(request(0, prompt=6))
    step(one)
    one.add(request(1, prompt=30))
    plan, _ = step(one)
    assert [(item.request_id, item.n) for item in plan.items] == [(0, 1), (1, 15)]


def test_no_more_sequences_than_allowed() -> None:
    one = scheduler(max_sequences=2)
    for request_id in range(3):
        one.add(request(request_id, prompt=2))
    plan, _ = step(one)
    assert [item.request_id for item in plan.items] == [0, 1]
    assert (one.counters().running_requests, one.counters().waiting_requests) == (2, 1)


def test_a_known_prefix_is_not_computed_again() -> None:
    one = scheduler()
    one.add(request(0, prompt=9, new=1))
    first, _ = step(one)
    one.add(Request(request_id=1, prompt_token_ids=tuple(range(9)), max_new_tokens=1))
    plan, events = step(one)
    assert (plan.items[0].start, plan.items[0].n) == (8, 1)
    assert plan.items[0].blocks[0][:2] == first.items[0].blocks[0][:2]
    assert events == (Tokens(1, (7,)), Ended(1, "length", 8))
    assert (one.counters().prefix_query_tokens, one.counters().prefix_hit_tokens) == (18, 8)


def test_slots_that_never_held_a_token_are_counted_when_they_are_given_back() -> None:
    """Nine tokens of which the last is never computed fill two blocks of four; ten prompt tokens end inside a third."""
    one = scheduler(prefix_cache=False)
    one.add(request(0, prompt=6, new=3))
    finish(one)
    assert (one.counters().reserved_slots, one.counters().unused_slots) == (8, 0)
    one.add(request(1, prompt=10, new=1))
    finish(one)
    assert (one.counters().reserved_slots, one.counters().unused_slots) == (20, 2)
    one.add(request(2, prompt=10, new=1))
    one.schedule(0.0)
    one.abort(2)
    assert one.counters().reserved_slots == 32
    assert one.counters().unused_slots == 2, "a plan in flight still writes them"


def test_a_fully_known_prompt_still_computes_its_last_block() -> None:
    """Logits exist only for computed rows."""
    one = scheduler()
    for request_id in range(2):
        one.add(Request(request_id=request_id, prompt_token_ids=tuple(range(8)), max_new_tokens=1))
        plan, _ = step(one)
    assert (plan.items[0].start, plan.items[0].n) == (4, 4)


def test_generated_tokens_are_a_prefix_for_the_next_turn() -> None:
    one = scheduler()
    one.add(request(0, prompt=6, new=4))
    finish(one)
    one.add(Request(request_id=1, prompt_token_ids=(0, 1, 2, 3, 4, 5, 7, 7, 7, 7, 50), max_new_tokens=1))
    plan, _ = step(one)
    assert plan.items[0].start == 8


@pytest.mark.parametrize("fields", [{"cache_salt": b"other"}, {"score_prompt": True}])
def test_no_hit_under_another_salt_or_when_scoring(fields: dict[str, object]) -> None:
    one = scheduler()
    one.add(request(0, prompt=9, new=1))
    step(one)
    one.add(Request(request_id=1, prompt_token_ids=tuple(range(9)), max_new_tokens=1, **fields))  # type: ignore
    plan, events = step(one)
    assert plan.items[0].start == 0
    assert events[-1] == Ended(1, "length", 0)


def test_a_prefix_hit_ends_where_scoring_begins() -> None:
    one = scheduler()  # blocks of 4
    one.add(request(0, prompt=12, new=1))
    step(one)
    scoring = Request(request_id=1, prompt_token_ids=tuple(range(12)), max_new_tokens=0, score_prompt=True)
    scoring.scored = 9
    one.add(scoring)
    plan, events = step(one)
    assert (plan.items[0].start, plan.items[0].n, plan.items[0].uses) == (8, 4, (Score(1, (10, 11)),))
    assert events[0] == Ended(1, "length", 8)


def test_scoring_without_generating() -> None:
    one = scheduler(token_budget=4)
    one.add(request(0, prompt=6, new=0, score_prompt=True))
    plan, events = step(one)
    assert (plan.items[0].uses, events) == ((Score(0, (1, 2, 3, 4)),), ())
    plan, events = step(one)
    assert plan.items[0].uses == (Score(0, (5,)),), "nothing follows the last row"
    assert events == (Ended(0, "length"),)


def test_output_rows_bound_scoring() -> None:
    one = scheduler(max_output_rows=4)
    one.add(request(0, prompt=12, new=0, score_prompt=True))
    one.add(request(1, prompt=2))
    plan, _ = step(one)
    assert [(item.request_id, item.n) for item in plan.items] == [(0, 4)]
    plan, _ = step(one)
    assert plan.total_output_rows == 4


def test_lack_of_blocks_preempts_the_newest_and_it_starts_over() -> None:
    one = scheduler(num_blocks=5, prefix_cache=False)
    old, new = request(0, prompt=7, new=8), request(1, prompt=7, new=8, arrival_s=1.0)
    one.add(old)
    one.add(new)
    step(one)
    assert one.counters().running_requests == 2
    step(one)
    plan, _ = step(one)  # position 8 needs a third block for both; one is left
    assert plan.preempted == (1,)
    assert [item.request_id for item in plan.items] == [0]
    assert (new.computed, new.block_ids, new.generated_tokens) == (0, [], 2)
    finish(one)
    assert one.counters().finished == {"length": 2}
    assert new.generated_tokens == 8


def test_admission_leaves_a_block_for_each_running_request() -> None:
    one = scheduler(num_blocks=4, prefix_cache=False)
    one.add(request(0, prompt=4, new=8))
    one.add(request(1, prompt=12, new=1))
    plan, _ = step(one)
    assert [item.request_id for item in plan.items] == [0], "3 more blocks would fit, but none would be left"


def test_forced_preemption_hits_the_newest_with_progress() -> None:
    one = scheduler(preempt_every=2)
    one.add(request(0, prompt=3, new=8))
    one.add(request(1, prompt=3, new=8, arrival_s=1.0))
    assert [step(one)[0].preempted for _ in range(4)] == [(), (1,), (), (1,)]
    assert one.counters().preemptions == 2


def test_abort_waiting_running_and_unknown() -> None:
    one = scheduler(max_sequences=1)
    one.add(request(0))
    one.add(request(1))
    step(one)
    assert one.abort(1)
    assert one.abort(0, "stop")
    assert not one.abort(0)
    assert not one.abort(99)
    one.check()
    assert one.take_events() == (Ended(1, "abort"), Ended(0, "stop"))
    assert one.take_events() == ()
    assert not one.has_work
    assert one.counters().used_blocks == 0


def test_abort_in_flight_keeps_the_blocks_until_commit_and_ignores_the_result() -> None:
    one = scheduler()
    subject = request(0)
    one.add(subject)
    plan = one.schedule(0.0)
    assert plan is not None
    assert one.abort(0)
    assert one.has_work
    one.check()
    assert one.counters().used_blocks == 2
    one.add(request(0, prompt=3))  # the id is free again at once
    assert one.commit(plan, StepResult.of({0: (7,)}), 0.0) == (Ended(0, "abort"),)
    assert one.counters().used_blocks == 0
    assert subject.generated_tokens == 0
    assert [type(event) for event in finish(one)] == [Tokens, Tokens, Tokens, Ended]


def test_deadlines_end_waiting_and_running_requests() -> None:
    one = scheduler(max_sequences=1)
    one.add(request(0, deadline_s=5.0))
    one.add(request(1, deadline_s=4.0))
    one.add(request(2, deadline_s=5.5))
    step(one, now=1.0)
    plan = one.schedule(5.0)
    assert plan is not None
    assert [item.request_id for item in plan.items] == [2]
    events = one.commit(plan, StepResult.of({2: (7,)}), 5.0)
    assert events == (Ended(1, "queue_timeout"), Ended(0, "timeout"), Tokens(2, (7,)))
    assert one.schedule(6.0) is None
    assert one.take_events() == (Ended(2, "timeout"),)


def test_an_item_that_got_no_token_is_asked_again() -> None:
    one = scheduler()
    one.add(request(0, prompt=4))
    plan = one.schedule(0.0)
    assert plan is not None
    assert one.commit(plan, StepResult(), 0.0) == ()
    one.check()
    plan, events = step(one)
    assert (plan.items[0].start, plan.items[0].n, plan.items[0].uses) == (3, 1, (Sample(0),))
    assert events == (Tokens(0, (7,)),)


def test_accepted_drafts_count_as_computed() -> None:
    """k guesses, up to k + 1 tokens back, all but the last already in the cache."""
    one = scheduler()
    subject = request(0, prompt=5, new=9, stop_token_ids=frozenset({9}))
    one.add(subject)
    step(one)
    for drafts, sampled, computed in (((1, 2), (1, 2, 3), 8), ((4, 9), (4, 9, 5), 11)):
        subject.draft_token_ids = drafts
        plan = one.schedule(0.0)
        assert plan is not None
        assert plan.items[0].uses == (Verify(0, drafts),)
        assert (plan.items[0].n, plan.total_tokens, plan.total_output_rows) == (3, 3, 3)
        events = one.commit(plan, StepResult.of({0: sampled}), 0.0)
        assert subject.computed == computed
        one.check()
        assert subject.draft_token_ids == ()
    assert events == (Tokens(0, (4, 9)), Ended(0, "stop"))
    assert subject.generated_token_ids == (7, 1, 2, 3, 4, 9)


@pytest.mark.parametrize("cache", [True, False])
def test_a_fork_copies_what_its_origin_has_computed(cache: bool) -> None:
    """Full blocks are shared, the one that is still written is copied, and one token is computed: logits need a row."""
    one = scheduler(token_budget=8, prefix_cache=cache)
    prompt = tuple(range(11))
    for request_id in range(3):
        fork_of = 0 if request_id else None
        one.add(Request(request_id=request_id, prompt_token_ids=prompt, max_new_tokens=2, fork_of=fork_of))
    other = request(3, prompt=2)
    one.add(other)
    plan, _ = step(one)
    assert [item.request_id for item in plan.items] == [0], "the budget is spent; who could be forked does not start"
    plan, _ = step(one)
    assert [(item.request_id, item.n) for item in plan.items] == [(0, 3), (3, 2)], "forks still wait for their origin"
    plan, _ = step(one)
    assert [(item.request_id, item.start, item.n) for item in plan.items[2:]] == [(1, 10, 1), (2, 10, 1)]
    origin, *_, first, second = (item.blocks[0] for item in plan.items)
    assert first[:2] == second[:2] == origin[:2]
    assert plan.moves == (BlockMove(origin[2], first[2]), BlockMove(origin[2], second[2]))
    assert len({origin[2], first[2], second[2]}) == 3
    finish(one)
    assert one.counters().used_blocks == 0
    assert one.counters().prefix_hit_tokens == (16 if cache else 0), "what is copied was not found in the cache"


def test_a_fork_of_somebody_else_or_nobody_runs_on_its_own() -> None:
    one = scheduler()
    one.add(request(0, prompt=6))
    one.add(Request(request_id=1, prompt_token_ids=(9, 9, 9), max_new_tokens=2, fork_of=0))
    one.add(Request(request_id=2, prompt_token_ids=(9, 9), max_new_tokens=2, fork_of=77))
    one.add(Request(request_id=3, prompt_token_ids=(0, 1, 2), max_new_tokens=2, fork_of=3))
    plan, _ = step(one)
    assert [(item.request_id, item.start) for item in plan.items] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert plan.moves == ()


@pytest.mark.parametrize(("num_blocks", "tokens"), [(16, [3, 1]), (4, [2, 2])])
def test_guesses_take_what_is_left(num_blocks: int, tokens: list[int]) -> None:
    """Of the token budget of 4, one stays for whoever comes behind; of the blocks those that nobody else needs."""
    one = scheduler(num_blocks=num_blocks, token_budget=4)
    first, second = request(0, prompt=4, new=9), request(1, prompt=4, new=9)
    for subject in (first, second):
        one.add(subject)
        step(one)
    step(one)
    first.draft_token_ids = second.draft_token_ids = (1, 2, 3, 4, 5, 6)
    plan, _ = step(one)
    assert [item.n for item in plan.items] == tokens
    assert plan.preempted == ()


def test_results_must_answer_the_plan_in_flight() -> None:
    one = scheduler(token_budget=4)
    one.add(request(0, prompt=6))
    plan = one.schedule(0.0)
    assert plan is not None
    with pytest.raises(InvariantError, match="in flight"):
        one.schedule(0.0)
    for result in ({0: (7,)}, {5: (7,)}):
        with pytest.raises(InvariantError, match="0 at most"):
            one.commit(plan, StepResult.of(result), 0.0)
    one.commit(plan, StepResult(), 0.0)
    with pytest.raises(InvariantError, match="not in flight"):
        one.commit(plan, StepResult(), 0.0)
    plan = one.schedule(0.0)
    assert plan is not None
    with pytest.raises(InvariantError, match="2 tokens, 1 at most"):
        one.commit(plan, StepResult.of({0: (7, 7)}), 0.0)


def test_the_queue_is_bounded() -> None:
    one = scheduler(max_sequences=1, max_waiting_requests=1)
    one.add(request(0))
    one.add(request(1))
    with pytest.raises(CapacityError, match="2 requests are unfinished and 2 are accepted"):
        one.add(request(2))
    one.abort(1)
    one.add(request(2))


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (request(0, prompt=0), "the prompt is empty"),
        (request(0, new=0), "max_new_tokens is 0; accepted is 1 or more"),
        (request(0, new=-1, score_prompt=True), "max_new_tokens is -1; accepted is 0 or more"),
        (request(0, new=2, min_new_tokens=3), "min_new_tokens is 3; accepted is 0 to max_new_tokens, 2"),
        (request(0, prompt=60, new=5), "60 prompt tokens .* = 65; accepted is at most 64"),
        (request(0, prompt=30, new=20), "need 49 token slots; the whole KV cache has 48"),
        (request(0, arrival_s=float("nan")), "arrival_s is nan"),
        (request(0, deadline_s=float("inf")), "deadline_s is inf"),
    ],
)
def test_requests_that_could_never_run_are_refused(subject: Request, message: str) -> None:
    one = scheduler(num_blocks=12)
    with pytest.raises(ConfigError, match=message):
        one.add(subject)
    assert not one.has_work
    one.check()


def test_ids_are_unique_and_requests_serve_once() -> None:
    one = scheduler()
    subject = request(0)
    one.add(subject)
    with pytest.raises(ConfigError, match="ids must be unique"):
        one.add(request(0))
    one.abort(0)
    with pytest.raises(ConfigError, match="added before"):
        one.add(subject)


def test_check_notices_a_lost_block() -> None:
    one = scheduler()
    subject = request(0)
    one.add(subject)
    step(one)
    subject.block_ids[0].pop()
    with pytest.raises(InvariantError):
        one.check()


def test_the_time_in_the_queue_ends_with_the_first_admission() -> None:
    one = scheduler(max_sequences=1, preempt_every=2)
    first, second, never = request(0, new=4, arrival_s=1.0), request(1, new=1, arrival_s=2.0), request(2, arrival_s=3.0)
    for each in (first, second, never):
        one.add(each)
    assert first.queued_s is None
    now = 4.0
    while second.state is not RequestState.FINISHED:
        step(one, now=now)
        now += 1.0
    one.abort(2)
    assert first.preemptions > 0
    assert first.queued_s == 3.0, "a recompute after a preemption is no queueing"
    assert second.started_s is not None
    assert second.started_s > 7.0
    assert second.queued_s == second.started_s - 2.0
    assert never.queued_s is None


def test_far_deadlines_of_finished_requests_are_forgotten() -> None:
    one = scheduler()
    for index in range(1000):
        one.add(request(index, new=1, deadline_s=1e6 + index))
        finish(one)
    assert len(one._deadlines) < 200
    one.add(request(5000, new=9, deadline_s=10.0))
    one.add(request(5001, new=9, deadline_s=2e6))
    for index in range(200):
        one.add(request(6000, deadline_s=3e6 - index))
        one.abort(6000)
    one.schedule(10.0)
    ends = [event for event in one.take_events() if event.request_id != 6000]
    assert ends == [Ended(5000, "queue_timeout")]


def test_state_slots_are_held_while_a_request_runs() -> None:
    """One each, given back at the end, at an abort and at preemption; without one nobody is admitted."""
    one = scheduler(prefix_cache=False, state_slots=2, max_sequences=3)
    for request_id in range(3):
        one.add(request(request_id, prompt=3, new=4, fork_of=0 if request_id == 1 else None))
    plan, _ = step(one)
    slots = {item.request_id: item.state_slot for item in plan.items}
    assert sorted(slots) == [0, 1]
    assert sorted(slots.values()) == [0, 1]
    assert not plan.moves
    one.check()
    one.abort(0)
    plan, _ = step(one)
    assert {item.request_id: item.state_slot for item in plan.items} == {1: slots[1], 2: slots[0]}
    assert next(item for item in plan.items if item.request_id == 2).start == 0
    finish(one)
    one.check()


def test_a_preempted_request_that_carries_a_state_begins_anew() -> None:
    one = scheduler(prefix_cache=False, state_slots=4, preempt_every=2)
    one.add(request(0, prompt=5, new=6))
    starts = []
    while (plan := one.schedule(0.0)) is not None:
        starts.append((plan.items[0].start, plan.items[0].state_slot is not None, plan.preempted))
        one.commit(plan, StepResult.of({0: (7,)}), 0.0)
        one.check()
    assert any(preempted for _, _, preempted in starts)
    assert all(start == 0 for start, _, preempted in starts if preempted)
    assert all(held for _, held, _ in starts)


def test_states_and_a_prefix_cache_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="accepted is off, because the states of a prefix are gone"):
        scheduler(state_slots=4)
