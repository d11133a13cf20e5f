# SPDX-License-Identifier: Apache-2.0
"""The pools of all cache groups as one, for those who hold blocks of each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from .blocks import BlockPool
from .groups import GIVEN_BACK, CacheGroup, Counts
from .plan import BlockMove
from .tier import BlockTier


class BlockPools:
    """A pool for each of `groups`, in their order; all have blocks of `block_size` token slots.

    windowed: indices of the groups that give blocks back.
    tiers:    what lies behind the pools, of the groups that have it, with the group's index.
    """

    def __init__(self, groups: Sequence[CacheGroup], pools: Sequence[BlockPool]) -> None:
        self.groups, self.pools = tuple(groups), tuple(pools)
        assert [pool.num_blocks for pool in pools] == [group.num_blocks for group in groups]
        self.block_size = pools[0].block_size
        self.windowed = tuple(index for index, group in enumerate(groups) if group.window is not None)
        self.tiers = tuple((index, pool.tier) for index, pool in enumerate(pools) if pool.tier is not None)

    @staticmethod
    def of(groups: Sequence[CacheGroup], block_size: int, kept_share: float) -> "BlockPools":
        """Fresh ones; `kept_share` of each may be pinned."""
        return BlockPools(
            groups,
            [
                BlockPool(
                    group.num_blocks,
                    block_size,
                    BlockTier(group.swap_blocks) if group.swap_blocks else None,
                    int(group.num_blocks * kept_share),
                )
                for group in groups
            ],
        )

    def __iter__(self) -> Iterator[BlockPool]:
        return iter(self.pools)

    def __len__(self) -> int:
        return len(self.pools)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks of a group hold `tokens` token slots."""
        return -(-tokens // self.block_size)

    @property
    def most_whole_pins(self) -> list[int]:
        """How many names may be pinned in each group that sees everything."""
        return [pool.pins.most for pool, group in zip(self.pools, self.groups, strict=True) if group.window is None]

    def first_blocks(self, position: int) -> list[int]:
        """Of each group, the first block that a row at `position`, or any later one, reads."""
        return [group.first_block(position, self.block_size) for group in self.groups]

    def can_allocate(
        self, counts: Sequence[int], spare: Counts | None = None, after_sharing: Sequence[Sequence[int]] | None = None
    ) -> bool:
        """Whether each pool has so many blocks and the `spare` ones more, once `after_sharing` has been shared."""
        wanted = counts if spare is None else total([counts, spare])
        shared = after_sharing or ((),) * len(self.pools)
        return all(map(BlockPool.can_allocate, self.pools, wanted, shared))

    def spare(self, requests: int, ahead: int) -> Counts:
        """What is to be left for so many requests that will need `ahead` blocks: one for each, where blocks are given
        back while others are taken."""
        return tuple(ahead if group.window is None else min(requests, ahead) for group in self.groups)

    def lookup(self, digests: Sequence[bytes]) -> list[Sequence[int]]:
        """Of each group, the blocks of the longest known prefix of `digests` behind which a row finds all it reads: all
        of them, or those of the last window behind as many GIVEN_BACK. Mutates nothing: share them to keep them."""
        found: list[Sequence[int]] = [()] * len(self.pools)
        count = len(digests)
        for index, (group, pool) in enumerate(zip(self.groups, self.pools, strict=True)):
            if group.window is None:
                found[index] = pool.lookup(digests[:count])
                count = len(found[index])
        if not self.windowed:
            return found if len(found) == 1 else [blocks[:count] for blocks in found]
        count = self.window_end(digests[:count], lambda index, digest: digest in self.pools[index].cache.names)
        for index in self.windowed:
            first, block_of = self.first_blocks(count * self.block_size)[index], self.pools[index].cache.block_of
            here = [block_of(digest) for digest in digests[first:count]]
            found[index] = [GIVEN_BACK] * first + [block for block in here if block is not None]
        return [blocks[:count] for blocks in found]

    def window_end(self, digests: Sequence[bytes], has: Callable[[int, bytes], bool], least: int = 0) -> int:
        """The most first blocks behind which every group with a window finds its last window, of which it `has` each
        block or, before the `least`-th, holds it already; `least` if there are none.
        """
        count, last = len(digests), -1
        while count != last:
            last = count
            for index in self.windowed:
                count = self._last_window(index, digests, has, least, count)
        return count

    def _last_window(
        self, index: int, digests: Sequence[bytes], has: Callable[[int, bytes], bool], least: int, count: int
    ) -> int:
        """The most blocks, `count` at most, whose last window a group has."""
        while count > least:
            first = max(self.groups[index].first_block(count * self.block_size, self.block_size), least)
            missing = next((i for i in range(count - 1, first - 1, -1) if not has(index, digests[i])), None)
            if missing is None:
                break
            count = missing
        return max(count, least)

    def take_moves(self) -> tuple[BlockMove, ...]:
        """Stores and loads since the last call: all stores, then all loads. Forgets them."""
        moves = [
            move if index == 0 else replace(move, group=index)
            for index, tier in self.tiers
            for move in tier.take_moves()
        ]
        if len(self.tiers) > 1:
            moves.sort(key=lambda move: move.kind == "load")
        return tuple(moves)

    def forget(self) -> int:
        """Forget all cached blocks, here and in the tiers; returns how many of here. Used blocks keep their names."""
        return sum(pool.forget() for pool in self.pools)


def total(counts: Iterable[Sequence[int]]) -> Counts:
    """The sum of each group's; nothing of nobody."""
    return tuple(map(sum, zip(*counts, strict=True)))
