# SPDX-License-Identifier: Apache-2.0
"""What keys and values take: of a sequence, of all that run at once, and how many blocks go into so many bytes.

Layers that look back a window hold no more than the window and the chunk that is being computed; their pool is as large
as the others' or as what all sequences can hold at a time, whichever is less. So it is never what requests wait for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from linnet.scheduler import CacheGroup
from linnet.scheduler.groups import most_blocks


@dataclass(frozen=True)
class KVLayer:
    """Layers of one cache group, or one of them: bytes of a token's keys and values, how far back it looks."""

    bytes_per_token: int
    window: int | None = None


@dataclass(frozen=True)
class KVShape:
    """The cache groups of a model, in their order, and what sizes their pools."""

    groups: tuple[KVLayer, ...]
    block_size: int
    max_sequences: int
    chunk_tokens: int

    def held_blocks(self, tokens: int) -> list[int]:
        """Of each group, the most blocks that a sequence of so many tokens (≥ 1) holds at a time."""
        return [most_blocks(one.window, tokens, self.chunk_tokens, self.block_size) for one in self.groups]

    def blocks_for(self, tokens: int) -> int:
        """Blocks of a group that sees everything."""
        return -(-tokens // self.block_size)

    def bytes_of(self, counts: Sequence[int]) -> int:
        """So many blocks of each group."""
        return sum(
            count * one.bytes_per_token * self.block_size for count, one in zip(counts, self.groups, strict=True)
        )

    def sequence_bytes(self, tokens: int) -> int:
        """The most that a sequence holds at a time."""
        return self.bytes_of(self.held_blocks(tokens))

    def pools(self, blocks: int, tokens: int) -> list[int]:
        """Blocks of each group's pool beside ``blocks`` for a group that sees everything, sequences of ``tokens``."""
        return [min(blocks, self.max_sequences * held) for held in self.held_blocks(tokens)]

    def most_blocks(self, room_bytes: int, tokens: int) -> int:
        """The most ``blocks`` whose ``pools`` take no more than ``room_bytes``, up to what all sequences can use."""
        fit, over = 0, self.max_sequences * self.blocks_for(tokens) + 1
        while over - fit > 1:
            middle = (fit + over) // 2
            if self.bytes_of(self.pools(middle, tokens)) <= room_bytes:
                fit = middle
            else:
                over = middle
        return fit

    def longest(self, blocks: int, tokens: int) -> int:
        """How many of a sequence's ``tokens`` go into pools of that size."""
        whole = any(one.window is None for one in self.groups)
        return (
            tokens if not whole and max(self.held_blocks(tokens)) <= blocks else min(blocks * self.block_size, tokens)
        )

    def cache_groups(self, counts: Sequence[int]) -> tuple[CacheGroup, ...]:
        """As the scheduler has them."""
        return tuple(CacheGroup(count, one.window) for count, one in zip(counts, self.groups, strict=True))
