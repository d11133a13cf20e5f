# SPDX-License-Identifier: Apache-2.0
"""The block pool: each method does what its docstring says, and check() catches every corruption."""

from collections.abc import Callable
from random import Random

import pytest

from linnet.errors import CapacityError, ConfigError
from linnet.scheduler import BlockPool, InvariantError


def name(index: int) -> bytes:
    return index.to_bytes(32, "little")


def cached_pool(num_blocks: int = 4) -> BlockPool:
    """All blocks cached; block i is named name(i) and was released in the order 0, 1, 2, …"""
    pool = BlockPool(num_blocks, 2)
    for index, block_id in enumerate(pool.allocate(num_blocks)):
        assert pool.publish(block_id, name(index))
    for index in range(num_blocks):
        pool.release(pool.lookup([name(index)]))
    pool.check({})
    return pool


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="num_blocks=0"):
        BlockPool(0, 16)
    with pytest.raises(ConfigError, match="block_size=0"):
        BlockPool(4, 0)


def test_allocate_and_release_return_to_the_start() -> None:
    pool = BlockPool(4, 16)
    taken = pool.allocate(3)
    assert len(set(taken)) == 3
    assert (pool.free_blocks, pool.used_blocks, pool.cached_blocks) == (1, 3, 0)
    pool.check(dict.fromkeys(taken, 1))
    pool.release(taken)
    assert pool.free_blocks == 4
    pool.check({})


def test_allocating_too_many_raises_and_mutates_nothing() -> None:
    pool = BlockPool(4, 16)
    taken = pool.allocate(3)
    with pytest.raises(CapacityError, match=r"2 blocks of 16 tokens .* 1 of 4 are available"):
        pool.allocate(2)
    assert pool.free_blocks == 1
    pool.check(dict.fromkeys(taken, 1))


def test_blocks_for_rounds_up() -> None:
    pool = BlockPool(4, 16)
    assert [pool.blocks_for(tokens) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_published_blocks_are_found_shared_and_kept_until_evicted() -> None:
    pool = BlockPool(3, 2)
    first, second = pool.allocate(2)
    assert pool.lookup([name(0)]) == ()
    assert pool.publish(first, name(0))
    assert pool.publish(second, name(1))
    assert pool.lookup([name(0), name(1), name(2)]) == (first, second)
    assert pool.lookup([name(2), name(0)]) == (), "a prefix with a hole is no prefix"
    pool.share([first])
    assert pool.reference_count(first) == 2
    pool.release([first, second])
    assert (pool.used_blocks, pool.cached_blocks) == (1, 1)
    pool.release([first])
    pool.check({})
    assert (pool.free_blocks, pool.cached_blocks, pool.available_blocks) == (1, 2, 3)
    pool.share([first, second])
    pool.check({first: 1, second: 1})


def test_one_name_one_block() -> None:
    pool = BlockPool(3, 2)
    first, duplicate, other = pool.allocate(3)
    assert pool.publish(first, name(0))
    assert pool.publish(first, name(0)), "publishing again under the same name changes nothing"
    assert not pool.publish(duplicate, name(0))
    pool.release([duplicate, other])
    assert pool.free_blocks == 2
    with pytest.raises(InvariantError, match="second name"):
        pool.publish(first, name(1))
    pool.check({first: 1})


def test_free_blocks_go_before_cached_ones_and_those_least_recently_released_first() -> None:
    pool = cached_pool(4)
    order = [pool.lookup([name(index)])[0] for index in range(4)]
    pool.share([order[0]])
    pool.release([order[0]])  # used again: now the most recent
    assert pool.allocate(3) == [order[1], order[2], order[3]]
    assert pool.lookup([name(0)]) == (order[0],)
    assert pool.lookup([name(1)]) == ()
    pool.check({order[1]: 1, order[2]: 1, order[3]: 1})


def test_the_tail_of_a_sequence_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(3, 2)
    blocks = pool.allocate(3)
    for index, block_id in enumerate(blocks):
        pool.publish(block_id, name(index))
    pool.release(blocks)
    assert pool.allocate(1) == [blocks[2]]
    assert pool.lookup([name(0), name(1), name(2)]) == tuple(blocks[:2])


def test_evict_forgets_cached_blocks_only() -> None:
    pool = cached_pool(4)
    held = pool.lookup([name(2)])
    pool.share(held)
    assert pool.evict(1) == 1
    assert pool.lookup([name(0)]) == ()
    assert pool.evict() == 2
    assert pool.evict() == 0
    assert pool.lookup([name(2)]) == held
    pool.check({held[0]: 1})


def test_can_allocate_counts_what_sharing_takes_away() -> None:
    pool = cached_pool(4)
    hits = pool.lookup([name(0), name(1)])
    assert pool.can_allocate(4)
    assert pool.can_allocate(2, after_sharing=hits)
    assert not pool.can_allocate(3, after_sharing=hits)
    pool.share(hits)
    assert pool.can_allocate(2, after_sharing=hits)


def test_only_a_block_held_once_and_unnamed_may_be_written() -> None:
    pool = BlockPool(3, 2)
    block_id = pool.allocate(1)[0]
    assert pool.may_write(block_id)
    pool.share([block_id])
    assert not pool.may_write(block_id)
    pool.release([block_id])
    pool.publish(block_id, name(0))
    assert not pool.may_write(block_id)


def test_misuse_is_refused() -> None:
    pool = BlockPool(2, 2)
    with pytest.raises(InvariantError, match="released more often"):
        pool.release([0])
    with pytest.raises(InvariantError, match="is free"):
        pool.share([0])
    with pytest.raises(InvariantError, match="held by nobody"):
        pool.publish(0, name(0))


CORRUPTIONS: dict[str, Callable[[BlockPool], object]] = {
    "a free block is also used": lambda pool: pool.allocator._reference_counts.__setitem__(pool.allocator._free[-1], 1),
    "a used block is lost": lambda pool: pool.allocator._reference_counts.__setitem__(0, 0),
    "a reference too many": lambda pool: pool.allocator._reference_counts.__setitem__(0, 2),
    "a negative count": lambda pool: pool.allocator._reference_counts.__setitem__(pool.allocator._free[-1], -1),
    "the free list names a block twice": lambda pool: pool.allocator._free.append(pool.allocator._free[-1]),
    "a free block is lost": lambda pool: pool.allocator._free.pop(),
    "a cached block is lost": lambda pool: pool.cache._idle.popitem(),
    "a cached block has no name": lambda pool: pool.cache._digest_of.pop(1),
    "a name without a block": lambda pool: pool.cache._block_of.__setitem__(name(9), 2),
    "a block without its name": lambda pool: pool.cache._block_of.pop(name(1)),
    "a name that points elsewhere": lambda pool: pool.cache._block_of.__setitem__(name(1), 0),
    "a free block has a name": lambda pool: pool.cache._digest_of.__setitem__(pool.allocator._free[-1], name(9)),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_check_notices(corruption: str) -> None:
    pool = BlockPool(4, 2)
    used, cached = pool.allocate(2)
    assert (used, cached) == (0, 1)
    pool.publish(used, name(0))
    pool.publish(cached, name(1))
    pool.release([cached])
    pool.check({used: 1})
    CORRUPTIONS[corruption](pool)
    with pytest.raises(InvariantError):
        pool.check({used: 1})


def test_check_compares_with_the_holders() -> None:
    pool = BlockPool(4, 2)
    block_id = pool.allocate(1)[0]
    pool.check()
    for owners in ({}, {block_id: 2}, {block_id: 1, 3: 1}, {block_id: 1, 99: 1}):
        with pytest.raises(InvariantError):
            pool.check(owners)


@pytest.mark.parametrize("seed", range(10))
def test_random_use_keeps_the_invariants(seed: int) -> None:
    random = Random(seed)
    pool = BlockPool(8, 2)
    holders: list[list[int]] = []
    for step in range(300):
        action = random.random()
        if action < 0.35 and pool.available_blocks:
            holders.append(pool.allocate(random.randint(1, pool.available_blocks)))
        elif action < 0.5:
            found = pool.lookup([name(random.randrange(step + 1))])
            if found:
                pool.share(found)
                holders.append(list(found))
        elif action < 0.7 and holders:
            block_id = random.choice(random.choice(holders))
            if pool.may_write(block_id):
                pool.publish(block_id, name(step))
        elif holders:
            pool.release(holders.pop(random.randrange(len(holders))))
        owners: dict[int, int] = {}
        for held in holders:
            for block_id in held:
                owners[block_id] = owners.get(block_id, 0) + 1
        pool.check(owners)
