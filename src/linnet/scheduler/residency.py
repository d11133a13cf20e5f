# SPDX-License-Identifier: Apache-2.0
"""What a request holds in the block pool: finding its prefix, holding its blocks, naming them, giving them back.

The only code that writes `request.block_ids`, `request.published`, `request.digests` and `request.state_slot`. What a
sequence carries beside its keys and values lies in a slot of its own: with such slots every sequence is computed from
its first token, and nothing is shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .allocator import StateSlots
from .blocks import BlockPool
from .plan import BlockMove
from .prefix import extend_digests
from .request import Request


@dataclass(frozen=True, slots=True)
class _Held:
    """What an origin has before anybody branches."""

    known: Sequence[int]
    digests: Sequence[bytes]
    block_ids: Sequence[int]
    published: int

    @staticmethod
    def of(request: Request) -> "_Held":
        return _Held(tuple(request.known), tuple(request.digests), tuple(request.block_ids), request.published)


class Loadable(NamedTuple):
    """A full block that need not be computed: the pool has it, or only the tier behind it."""

    digest: bytes
    in_pool: bool


class Residency:
    """Requests on one side, the pool on the other; counts what the prefix table gave."""

    def __init__(self, pool: BlockPool, prefix_cache: bool, state_slots: int = 0) -> None:
        self.pool = pool
        self.slots = StateSlots(state_slots) if state_slots else None
        self.prefix_cache = prefix_cache
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self.reserved_slots = 0
        self.unused_slots = 0
        self._copies: list[tuple[Request, BlockMove]] = []  # for whom

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
        if self.slots is not None and not self.slots.free_slots:
            return False
        if not self.pool.can_allocate(wanted + spare_blocks, after_sharing=hits):
            return False
        if self.slots is not None:
            request.state_slot = self.slots.take()
        self.pool.share(hits)
        own = self._allocate(wanted)
        unwritten = {move.target: move.source for _, move in self._copies}  # of an origin that has its own only now
        self._copies += [
            (request, BlockMove(unwritten.get(source, source), target))
            for source, target in zip(copied, own, strict=False)
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

    def loadable(self, request: Request) -> Sequence[Loadable]:
        """The blocks, from the first that is not computed, that the tier has, and the pool between them.

        None without a tier, or where the request is in the middle of a block. Mutates: `digests`.
        """
        tier, cache = self.pool.tier, self.pool.cache
        first, offset = divmod(request.computed, self.pool.block_size)
        full = self._reusable_tokens(request) // self.pool.block_size
        found: list[Loadable] = []
        if tier is None or offset or full <= first or not len(tier):
            return found
        for digest in self._digests(request, full)[first:]:
            in_pool = digest in cache.names
            if not in_pool and digest not in tier:
                break
            found.append(Loadable(digest, in_pool))
        return found

    def load(self, request: Request, found: Sequence[Loadable]) -> None:
        """Take over blocks that were found `loadable`, from the first on; the request holds blocks of its own for them.

        Mutates: `block_ids`, `computed` (they count as computed), `published`, `owed`, at first admission
        `cached_tokens` and the counters; the pool's table and its tier's moves.
        """
        tier, size = self.pool.tier, self.pool.block_size
        assert tier is not None
        for digest, in_pool in found:
            index = request.computed // size
            if in_pool:
                self._exchange(request, index, digest)
            else:
                tier.load(digest, request.block_ids[index])
                self.pool.publish(request.block_ids[index], digest)
            request.computed += size
        request.published = request.computed // size
        request.owed -= len(found) * size
        if request.cached_tokens is not None and not request.preemptions:
            request.cached_tokens += len(found) * size
            self.prefix_hit_tokens += len(found) * size

    def may_fork_soon(self, request: Request, origin: Request) -> bool:
        """Whether the origin is about to compute more of the prompt than can be copied now. Mutates nothing."""
        return origin.computed < min(self._reusable_tokens(request), request.prompt_tokens)

    def take_moves(self) -> tuple[BlockMove, ...]:
        """Stores and loads, then the copies that those who settled since the last call need before they are computed.

        Forgets them.
        """
        copies = tuple(move for _, move in self._copies)
        self._copies.clear()
        return copies if self.pool.tier is None else (*self.pool.tier.take_moves(), *copies)

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

    def branch(self, pairs: Sequence[tuple[Request, Request]]) -> None:
        """Make each first request go on from the second: hold the blocks of its tokens and give the own ones back.

        Origins are read as they are before any of this. Where an origin itself goes on from another one, somebody takes
        over its blocks as they are; everybody else shares the full ones and gets a copy of the one still being written
        (see `take_moves`), for which those that nobody goes on from have left room. Mutates: `known`, `digests`,
        `block_ids`, `published` of the first ones, and the pool.
        """
        origins = {origin.request_id: _Held.of(origin) for _, origin in pairs}
        changed = {request.request_id for request, _ in pairs}
        taken_over = origins.keys() - changed
        given_back = [request.block_ids for request, _ in pairs]
        copies: list[tuple[Request, int]] = []
        for request, origin in pairs:
            held = origins[origin.request_id]
            full, partial = divmod(len(held.known), self.pool.block_size)
            whole = origin.request_id not in taken_over
            taken_over |= {origin.request_id}
            request.known, request.digests = list(held.known), list(held.digests)
            request.block_ids = list(held.block_ids if whole else held.block_ids[:full])
            request.published = held.published if whole else full
            self.pool.share(request.block_ids)
            if partial and not whole:
                copies.append((request, held.block_ids[full]))
        for block_ids in given_back:
            self.pool.release(block_ids)
        for request, source in copies:
            self.unused_slots += -len(request.known) % self.pool.block_size  # of a block that was given back for it
            request.block_ids += self._allocate(1)
            self._copies.append((request, BlockMove(source, request.block_ids[-1])))

    def release(self, request: Request, returns: bool = False) -> None:
        """Give all blocks back, and count the slots that never held a token; `returns`: it will want them again.

        Copies into them are not wanted any more; one out of them may take the block instead. Mutates: `block_ids`,
        `published`, `unused_slots`, `state_slot`, and as the pool's `release` does.
        """
        if self._copies:
            self._copies = [(other, move) for other, move in self._copies if other is not request]
            self._hand_over(request)
        self.unused_slots += max(len(request.block_ids) * self.pool.block_size - request.computed, 0)
        self.pool.release(request.block_ids, awaited=returns)
        request.block_ids = []
        request.published = 0
        if self.slots is not None and request.state_slot is not None:
            self.slots.give_back(request.state_slot)
            request.state_slot = None

    def give_up(self, request: Request) -> None:
        """A preempted request will not come back for its blocks. Mutates the eviction order."""
        self.pool.give_up(request.digests)

    def keep(
        self, owner: bytes, token_ids: Sequence[int], salt: bytes, shared_tokens: int = 0, lasting: bool = False
    ) -> None:
        """Forget the blocks of this sequence after all others, instead of what the owner kept before; see `Pins`."""
        digests: list[bytes] = []
        if self.prefix_cache:
            size = self.pool.block_size
            full = min(len(token_ids) // size, self.pool.pins.most)
            extend_digests(digests, token_ids, salt, size, full, shared_tokens)
        self.pool.pins.keep(owner, digests, lasting)

    def _allocate(self, count: int) -> list[int]:
        self.reserved_slots += count * self.pool.block_size
        return self.pool.allocate(count)

    def _exchange(self, request: Request, index: int, digest: bytes) -> None:
        """Share the pool's block of that name instead of an own one that has not been written."""
        shared = self.pool.cache.block_of(digest)
        assert shared is not None
        self.pool.share([shared])
        self.pool.release([request.block_ids[index]])
        self.reserved_slots -= self.pool.block_size
        request.block_ids[index] = shared

    def _hand_over(self, request: Request) -> None:
        """Blocks that are still to be copied, and that nobody else holds, go to the first who wants a copy."""
        for index, (other, move) in enumerate(self._copies):
            if move.source in request.block_ids and self.pool.reference_count(move.source) == 1:
                self.pool.share([move.source])
                other.block_ids[other.block_ids.index(move.target)] = move.source
                self.pool.release([move.target])
                self._copies[index] = (other, BlockMove(move.source, move.source))
        self._copies = [(other, move) for other, move in self._copies if move.source != move.target]

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
        size, shared = self.pool.block_size, request.shared_tokens
        extend_digests(request.digests, request.known, request.cache_salt, size, full_blocks, shared)
        return request.digests[:full_blocks]
