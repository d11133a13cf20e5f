# SPDX-License-Identifier: Apache-2.0
"""Cache groups: what a window lets go of, what is still found of a prefix, and how much a sequence ever holds."""

import pytest

from linnet.errors import ConfigError
from linnet.scheduler import (
    GIVEN_BACK,
    BlockPools,
    CacheGroup,
    Request,
    Scheduler,
    SchedulerConfig,
    StepPlan,
    StepResult,
)
from linnet.scheduler.groups import most_blocks

SIZE = 4


def scheduler(**fields: object) -> Scheduler:
    base: dict[str, object] = {
        "num_blocks": 16, "block_size": SIZE, "max_model_len": 64, "token_budget": 8,
        "more_groups": (CacheGroup(8, window=6),),
    }  # fmt: skip
    return Scheduler(SchedulerConfig(**(base | fields)))  # type: ignore[arg-type]


def request(request_id: int, tokens: int, new: int = 1) -> Request:
    return Request(request_id=request_id, prompt_token_ids=tuple(range(tokens)), max_new_tokens=new)


def step(one: Scheduler) -> StepPlan:
    plan = one.schedule(0.0)
    assert plan is not None
    one.commit(plan, StepResult.of({item.request_id: (7,) for item in plan.items if item.most_tokens}), 0.0)
    one.check()
    return plan


@pytest.mark.parametrize("window", [1, 2, 5, 16, 17])
@pytest.mark.parametrize("chunk", [1, 3, 16, 40])
def test_a_sequence_never_holds_more_than_window_and_chunk(window: int, chunk: int) -> None:
    """Against every place in which a chunk can begin."""
    group, tokens = CacheGroup(1, window), 96
    held = [
        -(-min(tokens, start + chunk) // SIZE) - group.first_block(start, SIZE)
        for start in range(tokens)
        if start + chunk <= tokens
    ]
    assert max(held) == most_blocks(window, tokens, chunk, SIZE)
    assert most_blocks(None, tokens, chunk, SIZE) == tokens // SIZE


def test_blocks_behind_the_window_are_given_back_while_the_request_runs() -> None:
    """Chunks of 8; the row at position 16 sees 11 .. 16, so that blocks 0 and 1 (positions 0 .. 7) are free again."""
    one = scheduler(prefix_cache=False)
    subject = request(0, 32, new=3)
    one.add(subject)
    everything, sliding = one.pools
    free = []
    for _ in range(3):
        plan = step(one)
        free.append((everything.free_blocks, sliding.free_blocks))
    assert [len(blocks) for blocks in plan.items[0].blocks] == [6, 6]
    assert plan.items[0].blocks[1][:2] == (GIVEN_BACK, GIVEN_BACK)
    assert free == [(8, 6), (8, 6), (8, 6)]  # two taken for a chunk, two given back
    while one.has_work:
        step(one)
    assert (everything.free_blocks, sliding.free_blocks) == (16, 8)


def test_a_prefix_is_found_with_its_last_window_only() -> None:
    """The sliding group is short of blocks, so the first ones are soon forgotten; the last window is still there."""
    one = scheduler()
    for request_id in (0, 1):
        one.add(request(request_id, 32))
        plans = []
        while one.has_work:
            plans.append(step(one))
    assert plans[0].items[0].start == 28  # one token at least is computed, and blocks are found whole
    assert plans[0].items[0].blocks[1][:5] == (GIVEN_BACK,) * 5
    assert GIVEN_BACK not in plans[0].items[0].blocks[0]


def test_a_prefix_without_its_last_window_is_not_taken() -> None:
    pools = BlockPools.of((CacheGroup(8), CacheGroup(8, window=6)), SIZE, 0.0)
    names = [bytes([index]) for index in range(6)]
    for pool, missing in zip(pools, ((5,), (0, 4)), strict=True):
        for index, (block_id, name) in enumerate(zip(pool.allocate(6), names, strict=True)):
            if index not in missing:
                pool.publish(block_id, name)
    # Behind block 5 the window needs blocks 3 and 4, behind block 4 it needs 2 and 3.
    everything, sliding = pools.lookup(names)
    assert (len(everything), len(sliding)) == (4, 4)
    assert list(sliding[:2]) == [GIVEN_BACK, GIVEN_BACK]
    assert [len(blocks) for blocks in pools.lookup(names[:1])] == [0, 0]


def test_what_can_never_run_is_refused() -> None:
    one = scheduler(more_groups=(CacheGroup(3, window=6),))
    one.add(request(0, 8))
    with pytest.raises(ConfigError, match="of layers that see 6 tokens; the whole KV cache has 12"):
        one.add(request(1, 32))
    with pytest.raises(ConfigError, match="window is 0; accepted is 1 or more"):
        scheduler(more_groups=(CacheGroup(3, window=0),))
    with pytest.raises(ConfigError, match="swap_blocks is 0 for some cache groups"):
        scheduler(swap_blocks=4)
