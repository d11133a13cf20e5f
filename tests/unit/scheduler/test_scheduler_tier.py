# SPDX-License-Identifier: Apache-2.0
"""The tier behind the prefix cache: which slot is used again, what is found, what is moved and in which order."""

import pytest

from linnet.scheduler import BlockMove, BlockPool, InvariantError
from linnet.scheduler.prefix_cache import Forgotten
from linnet.scheduler.tier import BlockTier


def name(index: int) -> bytes:
    return bytes([index])


def put(tier: BlockTier, block_id: int, index: int, awaited: bool = False) -> bool:
    """One block; whether it is found afterwards."""
    tier.put([Forgotten(block_id, name(index), awaited)])
    return name(index) in tier


def filled(tier: BlockTier, awaited: tuple[int, ...] = ()) -> BlockTier:
    """Blocks 0 … in as many slots, stored."""
    for index in range(tier.num_slots):
        assert put(tier, index, index, index in awaited)
    tier.take_moves()
    return tier


def found(tier: BlockTier) -> set[int]:
    return {index for index in range(32) if name(index) in tier}


def test_what_is_put_is_stored_once_and_can_be_loaded() -> None:
    tier = BlockTier(2)
    assert put(tier, 5, 1, awaited=False)
    assert put(tier, 6, 1, awaited=False)
    assert tier.take_moves() == (BlockMove(5, 0, "store"),)
    tier.load(name(1), 9)
    assert tier.take_moves() == (BlockMove(0, 9, "load"),)
    assert name(1) in tier
    assert (tier.stored_blocks, tier.loaded_blocks) == (1, 1)


def test_stores_come_before_loads() -> None:
    tier = filled(BlockTier(2))
    tier.load(name(0), 7)
    tier.pool_has(name(1))
    assert put(tier, 7, 2, awaited=False)
    assert [move.kind for move in tier.take_moves()] == ["store", "load"]


def test_the_least_recent_goes_first_and_what_is_awaited_last() -> None:
    tier = filled(BlockTier(4), awaited=(0,))
    put(tier, 1, 1, awaited=False)  # found again: 2 is now the least recent
    put(tier, 10, 10, awaited=False)
    assert found(tier) == {0, 1, 3, 10}
    tier.take_moves()
    for index in (11, 12, 13):
        assert put(tier, index, index, awaited=True)
    assert found(tier) == {0, 11, 12, 13}
    tier.take_moves()
    assert not put(tier, 14, 14, awaited=False), "somebody will come back for each of them"
    assert put(tier, 15, 15, awaited=True)
    assert found(tier) == {11, 12, 13, 15}
    tier.give_up(name(13))
    tier.take_moves()
    assert put(tier, 16, 16, awaited=False)
    assert found(tier) == {11, 12, 15, 16}


def test_what_the_pool_has_too_is_spared_first() -> None:
    tier = filled(BlockTier(3))
    tier.pool_has(name(2))
    put(tier, 10, 10, awaited=False)
    assert found(tier) == {0, 1, 10}
    tier.take_moves()
    tier.load(name(1), 4)
    tier.take_moves()
    put(tier, 11, 11, awaited=False)
    assert found(tier) == {0, 10, 11}


def test_a_slot_that_a_move_names_is_not_used_again_in_the_step() -> None:
    tier = filled(BlockTier(2))
    tier.load(name(0), 7)
    tier.load(name(1), 8)
    assert not put(tier, 9, 9, awaited=True)
    assert found(tier) == {0, 1}
    tier.take_moves()
    assert put(tier, 9, 9, awaited=True)
    assert put(tier, 10, 10, awaited=True)
    assert not put(tier, 11, 11, awaited=True), "both are still to be stored"


def test_where_room_is_short_the_tail_of_a_sequence_is_lost() -> None:
    tier = BlockTier(8)
    tier.room = 2
    tier.put([Forgotten(index, name(index), True) for index in (4, 3, 2, 1)])
    assert found(tier) == {1, 2}
    assert tier.room == 0
    tier = BlockTier(3)
    tier.put([Forgotten(index, name(index), True) for index in (4, 3, 2, 1)])
    assert found(tier) == {1, 2, 3}
    assert [*tier._awaited] == [name(3), name(2), name(1)], "the tail is given up first"


def test_a_tier_without_room_still_has_what_it_has() -> None:
    tier = filled(BlockTier(2))
    tier.room = 0
    assert not put(tier, 5, 5, awaited=True)
    assert put(tier, 0, 0, awaited=False)
    assert tier.take_moves() == ()
    assert found(tier) == {0, 1}


def test_an_index_restores_it() -> None:
    tier = filled(BlockTier(3))
    tier.pool_has(name(0))
    assert put(tier, 9, 9, awaited=False)
    assert [digest for digest, _ in tier.index()] == [name(1), name(2)], "what is not stored yet is left out"
    tier.take_moves()
    again = BlockTier(3)
    again.restore(tier.index())
    assert again.index() == tier.index()
    again.check(())
    again.load(name(9), 1)
    assert again.take_moves() == (BlockMove(0, 1, "load"),)


@pytest.mark.parametrize("index", [[(name(1), 3)], [(name(1), 0), (name(2), 0)], [(name(1), 0), (name(1), 1)]])
def test_an_index_that_cannot_be_is_refused(index: list[tuple[bytes, int]]) -> None:
    with pytest.raises(InvariantError, match="slot"):
        BlockTier(3).restore(index)
    with pytest.raises(InvariantError, match="earlier"):
        filled(BlockTier(3)).restore([])


def test_a_pool_puts_what_it_evicts_into_its_tier_and_forgets_both() -> None:
    tier = BlockTier(8)
    pool = BlockPool(3, 4, tier)
    blocks = pool.allocate(3)
    for block_id in blocks:
        pool.publish(block_id, name(block_id))
    pool.release(blocks[:1])
    pool.release(blocks[1:], awaited=True)
    taken = pool.allocate(2)
    assert set(tier.take_moves()) == {BlockMove(blocks[0], 1, "store"), BlockMove(blocks[2], 0, "store")}
    pool.check()
    pool.publish(taken[0], name(blocks[0]))  # computed again
    pool.check()
    assert pool.forget() == 1
    assert len(tier) == 0
    pool.check()


def test_check_sees_a_name_in_two_places() -> None:
    tier = filled(BlockTier(2))
    tier._awaited[name(0)] = None
    with pytest.raises(InvariantError, match="place"):
        tier.check(())
