# SPDX-License-Identifier: Apache-2.0
"""Who gets a place: forks keep theirs while their origin reads, and taking turns costs no more than it is worth."""

from linnet.scheduler import Request, Scheduler, SchedulerConfig, StepPlan, StepResult
from linnet.scheduler.plan import BlockMove

PROMPT = tuple(range(11))


def scheduler(**fields: object) -> Scheduler:
    base: dict[str, object] = {"num_blocks": 64, "block_size": 4, "max_model_len": 64, "token_budget": 11}
    return Scheduler(SchedulerConfig(**({**base, "max_sequences": 4} | fields)))  # type: ignore[arg-type]


def samples(count: int, **fields: object) -> list[Request]:
    """Requests 0 … of one prompt, the others forks of the first."""
    return [
        Request(request_id=i, prompt_token_ids=PROMPT, fork_of=0 if i else None, **({"max_new_tokens": 4} | fields))  # type: ignore[arg-type]
        for i in range(count)
    ]


def step(one: Scheduler, now: float) -> StepPlan:
    plan = one.schedule(now)
    assert plan is not None
    one.commit(plan, StepResult.of({item.request_id: (7,) for item in plan.items if item.most_tokens}), now)
    one.check()
    return plan


def ids(plan: StepPlan) -> list[int]:
    return [item.request_id for item in plan.items]


def test_a_fork_of_a_fork_copies_what_is_already_written() -> None:
    one = scheduler(prefix_cache=False)
    for request_id in range(3):
        fork_of = request_id - 1 if request_id else None
        one.add(Request(request_id=request_id, prompt_token_ids=PROMPT, max_new_tokens=4, fork_of=fork_of))
    origin = step(one, 0.0).items[0].blocks[0]
    plan = step(one, 1.0)
    assert ids(plan) == [0, 1, 2]
    assert plan.moves == tuple(BlockMove(origin[2], item.blocks[0][2]) for item in plan.items[1:])


def test_seats_of_forks_are_kept_while_their_origin_reads() -> None:
    one = scheduler(policy="priority", token_budget=64)
    for sample in samples(4, priority=0):
        one.add(sample)
    for request_id in (4, 5, 6):
        one.add(Request(request_id=request_id, prompt_token_ids=(1, 2, 3), max_new_tokens=4, priority=9))
    assert ids(step(one, 0.0)) == [0]
    assert ids(step(one, 1.0)) == [0, 1, 2, 3]


def test_nobody_makes_way_for_a_fork_that_still_waits() -> None:
    one = scheduler(policy="mlfq", max_sequences=2, token_budget=4)
    one.add(Request(request_id=9, prompt_token_ids=(1, 2), max_new_tokens=40))
    step(one, 0.0)
    for sample in samples(2, arrival_s=1.0):
        one.add(sample)
    plan = step(one, 1.0)
    assert plan.preempted == ()
    assert ids(plan) == [9, 0]


def test_taking_turns_costs_little_more_than_waiting() -> None:
    """Two that do not fit together, and whose computing takes longer than starving."""
    computed = {}
    for policy in ("fcfs", "mlfq"):
        one = scheduler(policy=policy, num_blocks=34, block_size=16, max_model_len=512, token_budget=64)
        for request_id in range(2):
            one.add(Request(request_id=request_id, prompt_token_ids=(request_id,) * 400, max_new_tokens=64))
        now = 0.0
        while one.has_work:
            now += 0.1 * step(one, now).total_tokens
        computed[policy] = one.counters().computed_tokens
    assert computed["fcfs"] == 2 * (400 + 63)
    assert computed["mlfq"] < 3 * computed["fcfs"], "it was thirty times as much before"


def test_what_is_computed_again_is_on_nobodys_account() -> None:
    one = scheduler(policy="fair", preempt_every=3, prefix_cache=False)
    one.add(Request(request_id=0, prompt_token_ids=PROMPT, max_new_tokens=40, tenant=b"a"))
    step(one, 0.0)
    counters = one._policy._counters  # type: ignore[attr-defined]
    before, delivered = counters[b"a"], 0
    for now in range(1, 30):
        delivered += sum(item.most_tokens for item in step(one, float(now)).items)
    assert one.counters().preemptions > 3
    assert counters[b"a"] - before == 2 * delivered


LONG = tuple(range(33))
"""Longer than the first quantum of the feedback queue: shorter ones come first."""


def test_who_makes_way_has_been_worth_its_admission() -> None:
    """33 tokens were computed to admit it: it delivers as many before a shorter one takes its place."""
    one = scheduler(policy="mlfq", max_sequences=1, max_model_len=128, token_budget=64)
    one.add(Request(request_id=0, prompt_token_ids=LONG, max_new_tokens=60))
    step(one, 0.0)
    one.add(Request(request_id=1, prompt_token_ids=(1,), max_new_tokens=1, arrival_s=1.0))
    found = [ids(step(one, float(now))) for now in range(1, 35)]
    assert found == [[0]] * 32 + [[1], [0]]
    assert one.counters().preemptions == 1
    assert one.counters().computed_tokens == 33 + 32 + 1 + 2, "of 66 known tokens 64 fill blocks, which were kept"


def test_blocks_of_who_made_way_are_forgotten_last() -> None:
    """Others come and go in a pool that they fill, and the preempted one still finds what it computed."""
    one = scheduler(policy="mlfq", max_sequences=1, max_model_len=96, num_blocks=28, token_budget=64)
    one.add(Request(request_id=0, prompt_token_ids=LONG, max_new_tokens=60))
    for request_id in range(1, 30):
        prompt = tuple(range(100 * request_id, 100 * request_id + 5))
        one.add(Request(request_id=request_id, prompt_token_ids=prompt, max_new_tokens=2, arrival_s=33 + request_id))
    now = 0.0
    while one.has_work:
        step(one, now)
        now += 1.0
    assert one.counters().preemptions == 1
    assert one.counters().computed_tokens <= 33 + 59 + 29 * 6 + 3, "what was in a block that was not full"


def test_blocks_of_who_does_not_come_back_are_forgotten_in_turn() -> None:
    one = scheduler(policy="mlfq", max_sequences=1, max_model_len=128, token_budget=64)
    one.add(Request(request_id=0, prompt_token_ids=LONG, max_new_tokens=60))
    for now in range(33):
        step(one, float(now))
    one.add(Request(request_id=1, prompt_token_ids=(1,), max_new_tokens=40, arrival_s=33.0))
    assert ids(step(one, 33.0)) == [1]
    cache = one.pools.pools[0].cache
    assert (len(cache._awaited), len(cache._idle)) == (16, 0)
    one.abort(0)
    one.check()
    assert (len(cache._awaited), len(cache._idle)) == (0, 16)
