# SPDX-License-Identifier: Apache-2.0
"""What a request holds in the block pool: finding its prefix, holding its blocks, naming them, giving them back.

The only code that writes `request.block_ids`, `request.published` and `request.digests`.
"""

from collections.abc import Sequence

from .blocks import BlockPool
from .plan import BlockMove
from .prefix import extend_digests
from .request import Request


class Residency:
    """Requests on one side, the pool on the other; counts what the prefix table gave."""

    def __init__(self, pool: BlockPool, prefix_cache: bool) -> None:
        self.pool = pool
        self.prefix_cache = prefix_cache
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self.reserved_slots = 0
        self.unused_slots = 0
        self._moves: list[BlockMove] = []

    def missing_blocks(self, request: Request, origin: Request | None = None) -> int:
        """Blocks the request must still get before all its known tokens have slots, but for the full ones of a running
        `origin` of the same prompt. Mutates nothing."""
        shared = 0 if origin is None else self._forkable_tokens(request, origin) // self.pool.block_size
        return self.pool.blocks_for(len(request.known)) - len(request.block_ids) - shared

    def grow(self, request: Request) -> None:
        """Get the missing blocks; the caller has made sure of them. Mutates: `block_ids`, and as `allocate` does."""
        request.block_ids += self._allocate(self.missing_blocks(request))

    def grow_for_drafts(self, request: Request, spare_blocks: int) -> None:
        """Get blocks for guesses too, if `spare_blocks` remain: nobody is preempted for a guess. Mutates as `grow`."""
        if request.useful_drafts > 0:
            wanted = self.pool.blocks_for(len(request.known) + request.useful_drafts) - len(request.block_ids)
            if wanted > 0 and self.pool.can_allocate(wanted + spare_blocks):
                request.block_ids += self._allocate(wanted)

    def settle(self, request: Request, spare_blocks: int, origin: Request | None = None) -> bool:
        """Hold the longest known prefix and new blocks for the other known tokens, if `spare_blocks` remain.

        The prefix is what the table knows, or what a running `origin` of the same prompt has computed, if that is more:
        its full blocks are shared, and the block it still writes is to be copied (see `take_moves`).

        False, with nothing held, when they would not. Mutates: `block_ids`, `published`, `computed` (the prefix counts
        as computed), at first admission `cached_tokens` and the counters; `digests`; the pool as `share` and
        `allocate` do. At least one token is left to compute, so that there are logits to sample from.
        """
        hits = self._lookup(request)
        known = found = len(hits) * self.pool.block_size
        copied: Sequence[int] = ()
        if origin is not None and (forked := self._forkable_tokens(request, origin)) > found:
            known, full = forked, forked // self.pool.block_size
            hits = origin.block_ids[:full]
            copied = origin.block_ids[full : self.pool.blocks_for(forked)]
        wanted = self.pool.blocks_for(len(request.known)) - len(hits)
        if not self.pool.can_allocate(wanted + spare_blocks, after_sharing=hits):
            return False
        self.pool.share(hits)
        own = self._allocate(wanted)
        unwritten = {move.target: move.source for move in self._moves}  # of an origin that itself settled just now
        self._moves += [
            BlockMove(unwritten.get(source, source), target) for source, target in zip(copied, own, strict=False)
        ]
        request.block_ids = [*hits, *own]
        request.published = len(hits)
        request.computed = known
        if request.cached_tokens is None:
            request.cached_tokens = found
            if self.prefix_cache and self._reusable_tokens(request):
                self.prefix_query_tokens += request.prompt_tokens
                self.prefix_hit_tokens += found
        return True

    def may_fork_soon(self, request: Request, origin: Request) -> bool:
        """Whether the origin is about to compute more of the prompt than can be copied now. Mutates nothing."""
        return origin.computed < min(self._reusable_tokens(request), request.prompt_tokens)

    def take_moves(self) -> tuple[BlockMove, ...]:
        """The copies that those who settled since the last call need before they are computed. Forgets them."""
        moves = tuple(self._moves)
        self._moves.clear()
        return moves

    def publish(self, request: Request) -> None:
        """Name the full blocks that were computed since the last time; nothing before `computed` is written again.

        Mutates: `published`, `digests`, the prefix table.
        """
        full = request.computed // self.pool.block_size
        if not self.prefix_cache or full <= request.published:
            return
        digests = self._digests(request, full)
        for index in range(request.published, full):
            self.pool.publish(request.block_ids[index], digests[index])
        request.published = full

    def release(self, request: Request, returns: bool = False) -> None:
        """Give all blocks back, and count the slots that never held a token; `returns`: it will want them again.

        Mutates: `block_ids`, `published`, `unused_slots`, and as the pool's `release` does.
        """
        self.unused_slots += max(len(request.block_ids) * self.pool.block_size - request.computed, 0)
        self.pool.release(request.block_ids, awaited=returns)
        request.block_ids = []
        request.published = 0

    def give_up(self, request: Request) -> None:
        """A preempted request will not come back for its blocks. Mutates the eviction order."""
        self.pool.give_up(request.digests)

    def _allocate(self, count: int) -> list[int]:
        self.reserved_slots += count * self.pool.block_size
        return self.pool.allocate(count)

    def _reusable_tokens(self, request: Request) -> int:
        """The longest prefix that need not be computed: one token always is, and so is every row still to be scored."""
        outstanding = request.scored < request.prompt_tokens
        return min(request.scored, len(request.known) - 1) if outstanding else len(request.known) - 1

    def _forkable_tokens(self, request: Request, origin: Request) -> int:
        return min(self._reusable_tokens(request), request.prompt_tokens, origin.computed)

    def _lookup(self, request: Request) -> Sequence[int]:
        full = self._reusable_tokens(request) // self.pool.block_size
        if not self.prefix_cache or not full:
            return ()
        return self.pool.lookup(self._digests(request, full))

    def _digests(self, request: Request, full_blocks: int) -> Sequence[bytes]:
        extend_digests(request.digests, request.known, request.cache_salt, self.pool.block_size, full_blocks)
        return request.digests[:full_blocks]
