# SPDX-License-Identifier: Apache-2.0
"""Cache groups: layers that look back equally far keep their keys and values in blocks of one pool.

Block i of a sequence holds the same positions in every group. What lies behind a group's window is read by nobody any
more and given back while the sequence goes on, so a group with a window holds a bounded number of blocks however long
the sequence is.
"""

from dataclasses import dataclass

GIVEN_BACK = -1
"""Stands in a list of blocks where one was given back, or was never held because it lies behind the window."""

Counts = tuple[int, ...]
"""A number of blocks for each group."""


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """The blocks of some layers.

    num_blocks:   of the pool.
    window:       how many last keys, its own among them, a row sees; None: all.
    swap_blocks:  of the tier behind the pool; 0: there is none.
    """

    num_blocks: int
    window: int | None = None
    swap_blocks: int = 0

    def first_block(self, position: int, block_size: int) -> int:
        """The first block that a row at `position`, or any later one, reads."""
        return 0 if self.window is None else max(position - self.window + 1, 0) // block_size

    def tokens_ahead(self, known: int, computed: int, chunk_tokens: int) -> int:
        """How many first tokens of a sequence have their place or had it: with a window no more than the next chunk,
        or a long prompt would hold at its admission what it gives back later."""
        return known if self.window is None else min(known, computed + chunk_tokens)

    def most_blocks(self, tokens: int, chunk_tokens: int, block_size: int) -> int:
        """The most blocks that a sequence of `tokens` (≥ 1), computed in chunks, holds at a time."""
        return most_blocks(self.window, tokens, chunk_tokens, block_size)


def most_blocks(window: int | None, tokens: int, chunk_tokens: int, block_size: int) -> int:
    """See `CacheGroup.most_blocks`: window - 1 keys before a chunk of rows, wherever blocks begin in them."""
    whole = -(-tokens // block_size)
    return whole if window is None else min(whole, -(-(window + chunk_tokens - 2) // block_size) + 1)
