# SPDX-License-Identifier: Apache-2.0
"""Laws of requests that go on from one another (beams): whoever shares, copies, makes way or ends, contexts are right.

The model checks every slot that is read; here groups branch at random, and runs in cramped pools must give what roomy
ones give.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import get_args

import pytest
from digest_model import VOCABULARY, DigestModel, PoisoningPools
from scheduler_world import TRIALS, step_s

from linnet.scheduler import Ended, Request, Scheduler, SchedulerConfig, StepPlan, StepResult, Tokens
from linnet.scheduler.config import Policy
from linnet.scheduler.residency import Residency

WIDTH = 4
NEW = 9


@dataclass
class Groups(DigestModel):
    """Once all of a group are computed in one step each goes on from one that chance names, with another token."""

    seed: int = 0
    groups: dict[int, tuple[int, ...]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    def run(self, plan: StepPlan) -> StepResult:
        before = {request_id: list(tokens) for request_id, tokens in self.tokens.items()}
        drawn = super().run(plan).tokens
        answer = {}
        for group in self.groups.values():
            alive = [one for one in group if one in self.requests]
            for one in alive:
                self.tokens[one] = before[one]
            if not alive or any(one not in drawn for one in alive):
                continue
            step = len(before[alive[0]])
            random = Random(f"{self.seed} {alive} {step}")
            for place, one in enumerate(alive):
                origin = random.choice(alive)
                self.kinds["own" if origin == one else "other"] += 1
                token = (drawn[origin].token_ids[0] + place) % VOCABULARY
                self.tokens[one] = [*before[origin], token]
                answer[one] = Tokens(one, (token,), origin=origin)
        return StepResult(answer)


def play(config: SchedulerConfig, seed: int, aborts: bool) -> tuple[dict[int, tuple[int, ...]], Groups, Scheduler]:
    """Several groups to their ends; with ``aborts`` whole groups are ended at some moment."""
    random = Random(seed)
    pools = PoisoningPools(config)
    scheduler = Scheduler(config, pools)
    model = Groups(pools, seed=seed)
    for group in range(random.randint(1, 3)):
        prompt = tuple(random.randrange(VOCABULARY) for _ in range(random.randint(1, 11)))
        ids = tuple(range(WIDTH * group, WIDTH * (group + 1)))
        for one in ids:
            origin = ids[0] if one != ids[0] else None
            request = Request(
                request_id=one,
                prompt_token_ids=prompt,
                max_new_tokens=NEW,
                fork_of=origin,
                gang=ids[0],
                tenant=bytes([group]),
                priority=random.randrange(2),
            )
            model.register(request)
            scheduler.add(request)
        model.groups[group] = ids
    chance = Random(seed + 1)
    found: dict[int, tuple[int, ...]] = {}

    def take(events: tuple[Tokens | Ended, ...]) -> None:
        for event in events:
            if isinstance(event, Ended):
                found[event.request_id] = tuple(model.tokens[event.request_id])
                del model.requests[event.request_id]

    def maybe_abort() -> None:
        if aborts and chance.random() < 0.02:
            for one in chance.choice(list(model.groups.values())):
                scheduler.abort(one)
            scheduler.check()

    steps = 0
    while scheduler.has_work:
        maybe_abort()
        plan = scheduler.schedule(float(steps))
        scheduler.check()
        if plan is not None:
            result = model.run(plan)
            maybe_abort()
            take(scheduler.commit(plan, result, steps + step_s(plan)))
            scheduler.check()
        take(scheduler.take_events())
        steps += 1
        assert steps < 5000, "no end"
    return found, model, scheduler


def roomy(**fields: object) -> SchedulerConfig:
    base: dict[str, object] = {
        "block_size": 4, "num_blocks": 200, "max_model_len": 32, "token_budget": 256, "max_sequences": 16
    }  # fmt: skip
    return SchedulerConfig(**(base | fields))  # type: ignore[arg-type]


def cramped(random: Random) -> SchedulerConfig:
    """Room for one group at the least."""
    size = random.choice((1, 2, 4, 16))
    return roomy(
        block_size=size,
        num_blocks=WIDTH * -(-(11 + NEW) // size) + random.choice((0, 0, 3)),
        token_budget=random.choice((WIDTH, 8, 64)),
        max_sequences=random.choice((WIDTH, WIDTH + 1, 16)),
        prefix_cache=random.random() < 0.5,
        preempt_every=random.choice((None, None, 1, 3)),
        policy=random.choice(get_args(Policy)),
    )


@pytest.mark.parametrize("seed", range(TRIALS))
def test_cramped_branching_gives_what_roomy_branching_gives(seed: int) -> None:
    plain, model, _ = play(roomy(), seed, aborts=False)
    assert model.kinds["other"]
    assert model.moves
    squeezed, _, scheduler = play(cramped(Random(seed)), seed, aborts=False)
    assert squeezed == plain
    assert scheduler.counters().used_blocks == 0


@pytest.mark.parametrize("seed", range(TRIALS))
def test_groups_that_end_in_the_middle_leave_nothing(seed: int) -> None:
    _, _, scheduler = play(cramped(Random(seed)), seed, aborts=True)
    counters = scheduler.counters()
    assert counters.used_blocks == 0
    assert counters.free_blocks + counters.cached_blocks == counters.total_blocks


def test_a_lone_survivor_takes_over_and_the_others_share() -> None:
    """Ten tokens in blocks of four: two full blocks for all, the third copied three times."""
    scheduler = Scheduler(roomy())
    prompt = tuple(range(10))
    for one in range(WIDTH):
        scheduler.add(Request(request_id=one, prompt_token_ids=prompt, max_new_tokens=NEW, fork_of=0 if one else None))
    for step in range(2):  # the first reads the prompt, the others fork it and compute their last token
        plan = scheduler.schedule(float(step))
        assert plan is not None
        scheduler.commit(plan, StepResult(), step + 0.5)
    plan = scheduler.schedule(2.0)
    assert plan is not None
    assert [item.n for item in plan.items] == [1] * WIDTH
    held = {item.request_id: item.blocks[0] for item in plan.items}
    scheduler.commit(plan, StepResult({one: Tokens(one, (one,), origin=2) for one in range(WIDTH)}), 2.5)
    scheduler.check()
    plan = scheduler.schedule(3.0)
    assert plan is not None
    after = {item.request_id: item.blocks[0] for item in plan.items}
    assert after[2] == held[2]
    assert all(blocks[:2] == held[2][:2] for blocks in after.values())
    assert len({blocks[2] for blocks in after.values()}) == WIDTH
    assert {move.source for move in plan.moves} == {held[2][2]}
    assert len(plan.moves) == WIDTH - 1
    assert [item.token_ids for item in plan.items] == [(one,) for one in range(WIDTH)]


def test_a_copy_whose_source_ends_takes_the_block_itself() -> None:
    scheduler = Scheduler(roomy())
    for one in range(2):
        scheduler.add(
            Request(request_id=one, prompt_token_ids=(1, 2, 3), max_new_tokens=NEW, fork_of=0 if one else None)
        )
    for step in range(2):
        plan = scheduler.schedule(float(step))
        assert plan is not None
        scheduler.commit(plan, StepResult(), step + 0.5)
    plan = scheduler.schedule(2.0)
    assert plan is not None
    source = plan.items[0].blocks[0][0]
    scheduler.commit(plan, StepResult({one: Tokens(one, (7,), origin=0) for one in range(2)}), 2.5)
    scheduler.abort(0)
    scheduler.check()
    plan = scheduler.schedule(3.0)
    assert plan is not None
    assert plan.moves == ()
    assert plan.items[0].blocks[0][0] == source
    assert replace(plan.items[0], blocks=()).token_ids == (7,)


def test_a_forgotten_copy_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Residency, "take_moves", lambda self: ())
    with pytest.raises(AssertionError, match="wrong context"):
        play(roomy(), 0, aborts=False)
