# SPDX-License-Identifier: Apache-2.0
"""Blocks that come back from the tier: where that is faster than computing, and as fast as the step's time allows."""

from math import inf

import pytest

from linnet.errors import ConfigError
from linnet.scheduler import Request, Scheduler, SchedulerConfig, StepPlan, StepResult, Tokens
from linnet.scheduler.step import StepBuilder
from linnet.scheduler.swapping import CopyPrice

ROW_S = 0.001
BLOCK = 4


class World:
    """A scheduler, a clock, and steps that take `ROW_S` a row and `copy_s` a block that is copied."""

    def __init__(self, copy_s: float, **settings: object) -> None:
        sizes: dict[str, object] = {"num_blocks": 40, "max_model_len": 160, "block_size": BLOCK, "swap_blocks": 100}
        self.scheduler = Scheduler(SchedulerConfig(**(sizes | settings)))  # type: ignore[arg-type]
        self.copy_s, self.now = copy_s, 0.0
        self.ids = 0
        self.tokens: dict[int, list[int]] = {}
        self.lengths: list[float] = []

    def ask(self, prompt: range, new_tokens: int, **fields: object) -> int:
        self.scheduler.add(
            Request(
                request_id=self.ids,
                prompt_token_ids=tuple(prompt),
                max_new_tokens=new_tokens,
                arrival_s=self.now,
                **fields,  # type: ignore[arg-type]
            )
        )
        self.ids += 1
        return self.ids - 1

    def step(self) -> StepPlan:
        plan = self.scheduler.schedule(self.now)
        assert plan is not None
        self.scheduler.check()
        copies = {kind: sum(move.kind == kind for move in plan.moves) * self.copy_s for kind in ("store", "load")}
        self.lengths.append(ROW_S * plan.total_tokens + sum(copies.values()))
        self.now += self.lengths[-1]
        drawn = {item.request_id: (7,) for item in plan.items if item.uses}
        for request_id, ids in drawn.items():
            self.tokens.setdefault(request_id, []).extend(ids)
        tokens = {request_id: Tokens(request_id, ids) for request_id, ids in drawn.items()}
        self.scheduler.commit(plan, StepResult(tokens, copies["store"], copies["load"]), self.now)
        self.scheduler.check()
        return plan

    def finish(self) -> None:
        while self.scheduler.has_work:
            self.step()


def pushed_out(copy_s: float, **settings: object) -> World:
    """A prompt of 100 tokens has been answered, and another has taken its place in the pool."""
    world = World(copy_s, **settings)
    world.ask(range(100), 2)
    world.finish()
    world.ask(range(1000, 1150), 2)
    world.finish()
    assert world.scheduler.counters().cached_blocks <= 40
    return world


def loads(plan: StepPlan) -> int:
    return sum(move.kind == "load" for move in plan.moves)


def test_a_prefix_that_was_pushed_out_is_loaded() -> None:
    world = pushed_out(copy_s=0.0)
    again = world.ask(range(100), 2)
    plan = world.step()
    assert (plan.items[0].start, plan.items[0].n) == (96, 4)
    assert loads(plan) + plan.items[0].start // BLOCK >= 24
    world.finish()
    counters = world.scheduler.counters()
    assert counters.swapped_in_blocks == loads(plan) > 0
    assert counters.prefix_hit_tokens == 96
    assert world.tokens[again] == [7, 7]


@pytest.mark.parametrize(("copy_s", "comes_back"), [(BLOCK * ROW_S / 20, True), (BLOCK * ROW_S * 3, False)])
def test_the_cheaper_way_is_taken(copy_s: float, comes_back: bool) -> None:
    """The step's prices are learnt, and so is that of a copy."""
    world = pushed_out(copy_s)
    world.scheduler.swapping.load.learn(10, 10 * copy_s)  # type: ignore[union-attr]
    world.ask(range(100), 2)
    plan = world.step()
    counters = world.scheduler.counters()
    assert (loads(plan) > 0) == comes_back
    assert (counters.swap_declined_blocks > 0) == (not comes_back)
    if not comes_back:
        world.finish()
        stored = world.scheduler.counters().swapped_out_blocks
        world.ask(range(2000, 2150), 2)
        world.finish()
        assert world.scheduler.counters().swapped_out_blocks == stored, "what would not be loaded is not stored"


def test_loading_keeps_to_the_step_budget_while_others_decode() -> None:
    """A hundred tokens' blocks take five budgets to load: they come in five steps or so, and nobody waits for them.

    Nor for the blocks they push out: those that there is no time to store are lost.
    """
    copy_s, budget_s = 0.0039, 0.02  # just worth it: computing a block takes 0.004
    world = pushed_out(0.0, step_budget_s=budget_s)
    decoding = world.ask(range(500, 502), 40)
    for _ in range(5):
        world.step()
    world.copy_s = copy_s
    swapping = world.scheduler.swapping
    assert swapping is not None
    swapping.load.learn(1, copy_s)
    swapping.store.learn(1, copy_s)
    swapping._computing_is_faster = lambda *args: False  # type: ignore[method-assign]
    again = world.ask(range(100), 2)
    first = len(world.lengths)
    loaded = 0
    while again not in world.tokens:
        plan = world.step()
        loaded += loads(plan)
        assert decoding in [item.request_id for item in plan.items]
    lengths = world.lengths[first:]
    assert loaded > 15
    assert len(lengths) >= 4
    assert max(lengths) < 1.3 * budget_s
    world.finish()


def test_who_loads_slowly_for_somebody_goes_on_when_that_one_is_preempted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that decodes runs out of blocks while the one before it loads a block a step: some item must remain."""
    anyway: list[int] = []
    monkeypatch.setattr(StepBuilder, "take_any_time", lambda self: anyway.append(1) or setattr(self, "_seconds", inf))
    world = World(0.0, step_budget_s=0.02, policy="priority", num_blocks=30, max_model_len=118)
    for prompt in (range(100), range(1000, 1110)):
        world.ask(prompt, 2)
        world.finish()
    world.ask(range(500, 503), 90, priority=1)
    for _ in range(3):
        world.step()
    world.copy_s = 0.01
    swapping = world.scheduler.swapping
    assert swapping is not None
    swapping.load.learn(1, world.copy_s)
    swapping._computing_is_faster = lambda *args: False  # type: ignore[method-assign]
    loading = world.ask(range(100), 2, priority=0)
    while not anyway:
        assert loading not in world.tokens
        world.step()
    world.finish()
    assert len(world.tokens[loading]) == 2


def test_a_price_follows_what_is_measured() -> None:
    price = CopyPrice()
    price.learn(4, 0.0)
    assert price.seconds == 0.0
    price.learn(4, 0.4)
    assert price.seconds == pytest.approx(0.1)
    price.learn(4, 0.8)
    assert price.seconds == pytest.approx(0.15)
    for _ in range(1000):
        price.learn(16, 0.16)
    assert price.seconds == pytest.approx(0.01)


def test_a_tier_without_a_prefix_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="found again by its prefix"):
        SchedulerConfig(num_blocks=4, max_model_len=8, swap_blocks=4, prefix_cache=False)
