# SPDX-License-Identifier: Apache-2.0
"""What is kept is forgotten last, counted, bounded, and never in anybody's way."""

from random import Random

import pytest

from linnet.scheduler import (
    BlockPool,
    InvariantError,
    Kept,
    Request,
    Scheduler,
    SchedulerConfig,
    StepResult,
    extend_digests,
)
from linnet.scheduler.tier import BlockTier


def name(index: int) -> bytes:
    return index.to_bytes(32, "little")


def names(*indices: int) -> list[bytes]:
    return [name(index) for index in indices]


def cached_pool(num_blocks: int = 4, most_pinned: int = 4, tier: BlockTier | None = None) -> BlockPool:
    """All blocks cached; the block named name(i) was released in the order 0, 1, 2, …"""
    pool = BlockPool(num_blocks, 2, tier, most_pinned)
    for index, block_id in enumerate(pool.allocate(num_blocks)):
        pool.publish(block_id, name(index))
    for index in range(num_blocks):
        pool.release(pool.lookup([name(index)]))
    return pool


def known(pool: BlockPool) -> list[int]:
    return [index for index in range(8) if pool.lookup([name(index)])]


def test_pinned_blocks_are_forgotten_after_all_others_and_their_tail_first() -> None:
    pool = cached_pool()
    pool.pins.keep(b"one", names(0, 1))
    pool.check({})
    assert pool.available_blocks == 4, "who runs may have them all"
    seen = []
    for _ in range(4):
        pool.allocate(1)
        seen.append(known(pool))
    assert seen == [[0, 1, 3], [0, 1], [0], []]


def test_a_pin_is_on_the_name_whenever_a_block_gets_it() -> None:
    pool = BlockPool(3, 2, None, 2)
    pool.pins.keep(b"one", names(7))
    assert pool.cache.pinned_blocks == 0
    first, second = pool.allocate(2)
    pool.publish(first, name(7))
    pool.publish(second, name(1))
    assert pool.cache.pinned_blocks == 1
    pool.release([first])
    pool.release([second])
    pool.check({})
    pool.allocate(2)
    assert known(pool) == [7]
    pool.allocate(1)
    assert (known(pool), pool.cache.pinned_blocks, pool.cache.pinned_names) == ([], 0, 1)


def test_what_is_let_go_counts_as_released_now() -> None:
    pool = cached_pool()
    pool.pins.keep(b"one", names(0, 1))
    pool.pins.let_go(b"one")
    pool.pins.let_go(b"unknown")
    pool.check({})
    assert (len(pool.pins), pool.cache.pinned_names) == (0, 0)
    pool.allocate(2)
    assert known(pool) == [0, 1], "the others had been idle longer"
    pool.allocate(1)
    assert known(pool) == [0]


def test_an_owner_keeps_what_it_named_last_and_shared_names_stay_for_the_other() -> None:
    pool = cached_pool()
    pool.pins.keep(b"one", names(0, 1))
    pool.pins.keep(b"two", names(0, 2))
    pool.pins.keep(b"one", names(0, 3))
    pool.check({})
    assert pool.cache.pinned_names == 3
    pool.pins.let_go(b"one")
    pool.check({})
    pool.allocate(2)
    assert known(pool) == [0, 2]


def test_beyond_the_most_the_owner_heard_of_least_recently_gives_way() -> None:
    pool = cached_pool(most_pinned=2)
    pool.pins.keep(b"one", names(0))
    pool.pins.keep(b"two", names(1))
    pool.pins.keep(b"one", names(0))
    pool.pins.keep(b"three", names(2))
    pool.check({})
    pool.allocate(2)
    assert known(pool) == [0, 2]


def test_an_owner_alone_keeps_the_beginning_that_may_be_kept() -> None:
    pool = cached_pool(most_pinned=2)
    pool.pins.keep(b"one", names(0, 1, 2, 3))
    pool.check({})
    pool.allocate(2)
    assert known(pool) == [0, 1]


def test_lasting_owners_give_way_to_lasting_ones_only() -> None:
    pool = cached_pool(most_pinned=3)
    pool.pins.keep(b"module", names(0, 1), lasting=True)
    pool.pins.keep(b"chat", names(2, 3))
    pool.check({})
    assert pool.cache.pinned_names == 3, "the chat keeps what is left"
    pool.pins.keep(b"other", names(3), lasting=True)
    pool.check({})
    (block_id,) = pool.allocate(1)
    assert known(pool) == [0, 1, 3]
    pool.pins.keep(b"large", names(2, 3), lasting=True)
    pool.check({block_id: 1})
    assert len(pool.pins) == 2, "module gave way"


@pytest.mark.parametrize("lasting", [False, True])
def test_owners_of_the_same_names_are_no_more_than_names_may_be(lasting: bool) -> None:
    """Else who keeps what another one keeps could be invented without end."""
    pool = cached_pool(most_pinned=2)
    for number in range(10):
        pool.pins.keep(bytes([number]), names(0), lasting)
        pool.check({})
    assert len(pool.pins) == 2
    pool.pins.keep(b"passing", names(0))
    pool.check({})
    assert len(pool.pins) == 2
    for number in range(10):
        pool.pins.let_go(bytes([number]))
    pool.pins.let_go(b"passing")
    assert pool.cache.pinned_names == 0


def test_nothing_may_be_kept_where_nothing_is_allowed() -> None:
    pool = cached_pool(most_pinned=0)
    pool.pins.keep(b"one", names(0, 1), lasting=True)
    pool.check({})
    assert (len(pool.pins), pool.cache.pinned_names) == (0, 0)


def test_blocks_in_use_are_pinned_when_they_fall_idle() -> None:
    pool = cached_pool()
    pool.share(pool.lookup(names(0, 1)))
    pool.pins.keep(b"one", names(0, 1))
    assert pool.cache.pinned_blocks == 2
    pool.release(pool.lookup(names(0, 1)), awaited=True)
    pool.check({})
    taken = pool.allocate(2)
    assert known(pool) == [0, 1]
    pool.give_up(names(0, 1))
    pool.check(dict.fromkeys(taken, 1))
    pool.allocate(1)
    assert known(pool) == [0]


def test_what_is_kept_and_evicted_is_kept_in_the_tier_too() -> None:
    tier = BlockTier(2)
    pool = cached_pool(tier=tier)
    pool.pins.keep(b"one", names(0, 1))
    taken = pool.allocate(2)
    pool.check(dict.fromkeys(taken, 1))
    assert [name(index) in tier for index in range(4)] == [False, False, True, True]
    assert pool.spilled_blocks == 0
    tier.take_moves()
    taken += pool.allocate(2)
    pool.check(dict.fromkeys(taken, 1))
    assert [name(index) in tier for index in range(4)] == [True, True, False, False]
    assert pool.spilled_blocks == 2
    tier.take_moves()
    pool.publish(taken[0], name(5))
    pool.release(taken)
    pool.allocate(4)
    assert name(5) not in tier, "an idle block takes no slot of one that is kept"
    pool.pins.let_go(b"one")
    tier.take_moves()
    assert tier._awaited == {}
    pool.pins.keep(b"two", names(1))
    assert list(tier._awaited) == [name(1)], "it is kept again, wherever it is"


def test_check_sees_pins_that_nobody_keeps() -> None:
    pool = cached_pool()
    pool.cache.pin(names(0))
    with pytest.raises(InvariantError, match="1 names are pinned, their owners keep 0"):
        pool.check({})
    with pytest.raises(InvariantError, match="unpinned more often"):
        pool.cache.unpin(names(1))


@pytest.mark.parametrize("seed", range(20))
def test_pins_of_many_owners_stay_consistent(seed: int) -> None:
    rng = Random(seed)
    pool = cached_pool(8, most_pinned=rng.randrange(9))
    held: list[int] = []
    for _ in range(200):
        what = rng.random()
        if what < 0.5:
            chosen = names(*rng.sample(range(8), rng.randrange(6)))
            pool.pins.keep(bytes([rng.randrange(4)]), chosen, lasting=rng.random() < 0.3)
        elif what < 0.7:
            pool.pins.let_go(bytes([rng.randrange(4)]))
        elif held and what < 0.85:
            pool.release([held.pop(rng.randrange(len(held)))], awaited=rng.random() < 0.5)
        elif pool.available_blocks:
            (block_id,) = pool.allocate(1)
            pool.publish(block_id, name(rng.randrange(8)))
            held.append(block_id)
        pool.check(dict.fromkeys(held, 1))


def test_the_scheduler_keeps_a_share_for_a_conversation() -> None:
    """A stranger's prompts fill the pool many times over; the conversation's next turn finds its blocks."""

    def hits_of_the_second_turn(share: float) -> int:
        config = SchedulerConfig(num_blocks=16, max_model_len=32, block_size=2, token_budget=64, kept_share=share)
        scheduler = Scheduler(config)

        def serve(request_id: int, prompt: tuple[int, ...], salt: bytes) -> int:
            request = Request(request_id=request_id, prompt_token_ids=prompt, max_new_tokens=1, cache_salt=salt)
            scheduler.add(request)
            while (plan := scheduler.schedule(0.0)) is not None:
                scheduler.commit(plan, StepResult.of({item.request_id: (1,) for item in plan.items}), 0.0)
                scheduler.check()
            return request.cached_tokens or 0

        talk = tuple(range(100, 112))
        serve(0, talk, b"mine")
        scheduler.keep(Kept(b"talk", talk, b"mine"))
        assert scheduler.counters().kept_blocks == min(6, int(16 * share))
        for request_id in range(1, 10):
            serve(request_id, tuple(range(request_id * 1000, request_id * 1000 + 16)), b"theirs")
        return serve(99, (*talk, 1, 2), b"mine")

    assert hits_of_the_second_turn(0.5) == 12
    assert hits_of_the_second_turn(0.2) == 6
    assert hits_of_the_second_turn(0.0) == 0


def test_a_shared_beginning_has_one_name_for_everybody_and_what_follows_has_not() -> None:
    def digests(salt: bytes, shared_tokens: int, tokens: tuple[int, ...] = (1, 2, 3, 4, 5, 6)) -> list[bytes]:
        found: list[bytes] = []
        extend_digests(found, tokens, salt, 2, len(tokens) // 2, shared_tokens)
        return found

    one, two = digests(b"one", 5), digests(b"two", 5)
    assert one[:2] == two[:2]
    assert one[2] != two[2]
    assert not set(one) & set(digests(b"one", 0)), "who sends the text itself shares nothing"
    assert digests(b"one", 1) == digests(b"one", 0), "no full block is shared"
    grown = digests(b"one", 5, (1, 2, 3, 4))
    extend_digests(grown, (1, 2, 3, 4, 5, 6), b"one", 2, 3, 5)
    assert grown == one
