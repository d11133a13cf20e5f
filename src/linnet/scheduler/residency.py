# SPDX-License-Identifier: Apache-2.0
"""What a request holds in the block pools: finding its prefix, holding its blocks, naming them, giving them back.

The only code that writes `request.block_ids`, `request.given_back`, `request.published`, `request.digests` and
`request.state_slot`. A prefix is found where every group has what the rows behind it read: all blocks, or those of the
last window. What a sequence carries beside its keys and values lies in a slot of its own: with such slots every
sequence is computed from its first token, and nothing is shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .allocator import StateSlots
from .blocks import BlockPool
from .groups import GIVEN_BACK, Counts
from .invariants import InvariantError
from .plan import BlockMove
from .pools import BlockPools
from .prefix import extend_digests
from .request import Request


@dataclass(frozen=True, slots=True)
class _Held:
    """What an origin has before anybody branches."""

    known: Sequence[int]
    digests: Sequence[bytes]
    block_ids: Sequence[Sequence[int]]
    given_back: Sequence[int]
    published: int

    @staticmethod
    def of(request: Request) -> "_Held":
        blocks = tuple(map(tuple, request.block_ids))
        return _Held(tuple(request.known), tuple(request.digests), blocks, tuple(request.given_back), request.published)


class Loadable(NamedTuple):
    """A full block that need not be computed.

    in_pool: of each group, whether its pool has it, or only the tier behind that; None: it need not be held.
    """

    digest: bytes
    in_pool: tuple[bool | None, ...]

    @property
    def loads(self) -> int:
        """How many blocks are to be copied for it."""
        return self.in_pool.count(False)


@dataclass(frozen=True, slots=True)
class Kept:
    """A sequence whose blocks are forgotten after all others, instead of what the owner kept before (see ``Pins``).

    salt, shared_tokens, namespace: of the requests that are to find them. lasting: gives way after those that are not.
    """

    owner: bytes
    token_ids: Sequence[int]
    salt: bytes
    shared_tokens: int = 0
    lasting: bool = False
    namespace: bytes = b""


class Residency:
    """Requests on one side, the pools on the other; counts what the prefix tables gave."""

    def __init__(self, pools: BlockPools, prefix_cache: bool, chunk_tokens: int, state_slots: int = 0) -> None:
        """`chunk_tokens`: the most that a step computes of a request."""
        self.pools = pools
        self.slots = StateSlots(state_slots) if state_slots else None
        self.prefix_cache = prefix_cache
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self.reserved_slots = 0
        self.unused_slots = 0
        self._chunk_tokens = chunk_tokens
        self._copies: list[tuple[Request, BlockMove]] = []  # for whom

    def missing_blocks(self, request: Request, origin: Request | None = None) -> Counts:
        """Of each group, blocks the request must still get before all its known tokens have slots (those of its next
        chunk, where there is a window), but for the full ones of a running `origin` of the same prompt. Mutates
        nothing."""
        computed = request.computed if origin is None else self._forkable_tokens(request, origin)
        ahead = self._blocks_ahead(request, computed)
        if request.block_ids:
            return tuple([wanted - len(held) for wanted, held in zip(ahead, request.block_ids, strict=True)])
        shared = 0 if origin is None else computed // self.pools.block_size
        return tuple([wanted - shared for wanted in ahead])

    def grow(self, request: Request) -> None:
        """Get the missing blocks; the caller has made sure of them. Mutates: `block_ids`, and as `allocate` does."""
        self._extend(request, self.missing_blocks(request))

    def grow_for_drafts(self, request: Request, spare: Counts) -> None:
        """Get blocks for guesses too, if `spare` ones remain: nobody is preempted for a guess. Mutates as `grow`."""
        if request.useful_drafts > 0:
            ahead = self._blocks_ahead(request, request.computed, request.useful_drafts)
            wanted = [max(count - len(held), 0) for count, held in zip(ahead, request.block_ids, strict=True)]
            if any(wanted) and self.pools.can_allocate(wanted, spare):
                self._extend(request, wanted)

    def settle(self, request: Request, spare: Counts, origin: Request | None = None) -> bool:
        """Hold the longest known prefix and new blocks for the other known tokens, if `spare` ones remain.

        The prefix is what the tables know, or what a running `origin` of the same prompt has computed, if that is more:
        its full blocks are shared, and the block it still writes is to be copied (see `take_moves`).

        False, with nothing held, when they would not. Mutates: `block_ids`, `published`, `computed` (the prefix counts
        as computed), at first admission `cached_tokens` and the counters; `digests`; the pools as `share` and
        `allocate` do. At least one token is left to compute, so that there are logits to sample from.
        """
        hits = self._lookup(request)
        known = found = len(hits[0]) * self.pools.block_size
        copied: Sequence[Sequence[int]] = [()] * len(self.pools)
        if origin is not None and (forked := self._forkable_tokens(request, origin)) > found:
            known, full = forked, forked // self.pools.block_size
            hits = [blocks[:full] for blocks in origin.block_ids]
            copied = [blocks[full : self.pools.blocks_for(forked)] for blocks in origin.block_ids]
        given_back = self.pools.first_blocks(known)
        shared = [blocks[first:] for blocks, first in zip(hits, given_back, strict=True)]
        wanted = [count - len(hits[0]) for count in self._blocks_ahead(request, known)]
        if self.slots is not None and not self.slots.free_slots:
            return False
        if not self.pools.can_allocate(wanted, spare, after_sharing=shared):
            return False
        if self.slots is not None:
            request.state_slot = self.slots.take()
        unwritten = {(move.group, move.target): move.source for _, move in self._copies}  # of origins that wait for it
        request.block_ids = []
        for group, pool in enumerate(self.pools):
            pool.share(shared[group])
            own = self._allocate(pool, wanted[group])
            for source, target in zip(copied[group], own, strict=False):
                move = BlockMove(unwritten.get((group, source), source), target, group=group)
                self._copies.append((request, move))
            request.block_ids.append([*[GIVEN_BACK] * given_back[group], *shared[group], *own])
        request.given_back = given_back
        request.published = len(hits[0])
        request.computed = known
        if request.cached_tokens is None:
            request.cached_tokens = found
            if self.prefix_cache and self._reusable_tokens(request):
                self.prefix_query_tokens += request.prompt_tokens
                self.prefix_hit_tokens += found
        return True

    def loadable(self, request: Request) -> Sequence[Loadable]:
        """The blocks, from the first that is not computed, that need not be, some of which only a tier has.

        None without tiers, or where the request is in the middle of a block. Mutates: `digests`.
        """
        pools, size = self.pools, self.pools.block_size
        first, offset = divmod(request.computed, size)
        full = self._reusable_tokens(request) // size
        if offset or full <= first or not any(len(tier) for _, tier in pools.tiers):
            return ()
        digests = self._digests(request, full)
        tiers = [tier for _, tier in pools.tiers]
        names = [pool.cache.names for pool in pools]

        def has(group: int, digest: bytes) -> bool:
            return digest in names[group] or digest in tiers[group]

        end = full
        for index, group in enumerate(pools.groups):
            if group.window is None:
                end = next((i for i in range(first, end) if not has(index, digests[i])), end)
        if pools.windowed:
            end = pools.window_end(digests[:end], has, first)
        needed = pools.first_blocks(end * size)
        found = [
            Loadable(
                digests[i],
                tuple([digests[i] in own if i >= least else None for own, least in zip(names, needed, strict=True)]),
            )
            for i in range(first, end)
        ]
        return found if not pools.windowed or self._may_load(request, found) else ()

    def load(self, request: Request, found: Sequence[Loadable]) -> None:
        """Take over blocks that were found `loadable`, from the first on: all of them, where a group has a window; else
        the request holds blocks of its own for them.

        Mutates: `block_ids`, `computed` (they count as computed), `published`, `owed`, at first admission
        `cached_tokens` and the counters; the pools' tables and their tiers' moves.
        """
        size = self.pools.block_size
        first, end = request.computed // size, request.computed // size + len(found)
        for group, tier in self.pools.tiers:
            tier.keep_for_loading([one.digest for one in found if one.in_pool[group] is False])
        shared = [
            [self._found(pool, one.digest) if one.in_pool[group] else GIVEN_BACK for one in found]
            for group, pool in enumerate(self.pools)
        ]
        for pool, blocks in zip(self.pools, shared, strict=True):  # before anything is forgotten for new blocks
            pool.share([block_id for block_id in blocks if block_id != GIVEN_BACK])
        for group in self.pools.windowed:
            self._slide(request, group, end)
        for group, tier in self.pools.tiers:
            pool, held = self.pools.pools[group], request.block_ids[group]
            for index, (one, block_id) in enumerate(zip(found, shared[group], strict=True), start=first):
                if block_id != GIVEN_BACK:
                    self._exchange(pool, held, index, block_id)
                elif one.in_pool[group] is False:
                    tier.load(one.digest, held[index])
                    pool.publish(held[index], one.digest)
            tier.keep_for_loading(())
        request.computed = end * size
        request.published = end
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
        return (*self.pools.take_moves(), *copies) if self.pools.tiers else copies

    def publish(self, request: Request) -> None:
        """Name the full blocks that were computed since the last time; nothing before `computed` is written again. Then
        give back what lies behind the windows.

        Mutates: `published`, `digests`, the prefix tables; `block_ids` and `given_back`, and as `release` does.
        """
        full = request.computed // self.pools.block_size
        if self.prefix_cache and full > request.published:
            digests = self._digests(request, full)
            for index in range(request.published, full):
                for pool, blocks in zip(self.pools, request.block_ids, strict=True):
                    pool.publish(blocks[index], digests[index])
            request.published = full
        for group in self.pools.windowed:
            self._give_back_behind(request, group, request.computed)

    def branch(self, pairs: Sequence[tuple[Request, Request]]) -> None:
        """Make each first request go on from the second: hold the blocks of its tokens and give the own ones back.

        Origins are read as they are before any of this. Where an origin itself goes on from another one, somebody takes
        over its blocks as they are; everybody else shares the full ones and gets a copy of the one still being written
        (see `take_moves`), for which those that nobody goes on from have left room. Mutates: `known`, `digests`,
        `block_ids`, `given_back`, `published` of the first ones, and the pools.
        """
        origins = {origin.request_id: _Held.of(origin) for _, origin in pairs}
        changed = {request.request_id for request, _ in pairs}
        taken_over = origins.keys() - changed
        given_back = [_Held.of(request) for request, _ in pairs]
        copies: list[tuple[Request, Sequence[int]]] = []
        for request, origin in pairs:
            held = origins[origin.request_id]
            full, partial = divmod(len(held.known), self.pools.block_size)
            whole = origin.request_id not in taken_over
            taken_over |= {origin.request_id}
            request.known, request.digests = list(held.known), list(held.digests)
            request.block_ids = [list(blocks if whole else blocks[:full]) for blocks in held.block_ids]
            request.given_back = list(held.given_back)
            request.published = held.published if whole else full
            for pool, blocks, first in zip(self.pools, request.block_ids, request.given_back, strict=True):
                pool.share(blocks[first:])
            if partial and not whole:
                copies.append((request, [blocks[full] for blocks in held.block_ids]))
        for own in given_back:
            for pool, block_ids, first in zip(self.pools, own.block_ids, own.given_back, strict=True):
                pool.release(block_ids[first:])
        for request, sources in copies:
            for group, (pool, source) in enumerate(zip(self.pools, sources, strict=True)):
                self.unused_slots += -len(request.known) % self.pools.block_size  # of a block given back for it
                request.block_ids[group] += self._allocate(pool, 1)
                self._copies.append((request, BlockMove(source, request.block_ids[group][-1], group=group)))

    def release(self, request: Request, returns: bool = False) -> None:
        """Give all blocks back, and count the slots that never held a token; `returns`: it will want them again.

        Copies into them are not wanted any more; one out of them may take the block instead. Mutates: `block_ids`,
        `given_back`, `published`, `unused_slots`, `state_slot`, and as the pools' `release` does.
        """
        if self._copies:
            self._copies = [(other, move) for other, move in self._copies if other is not request]
            self._hand_over(request)
        if request.block_ids:
            for pool, blocks, first in zip(self.pools, request.block_ids, request.given_back, strict=True):
                self.unused_slots += max(len(blocks) * self.pools.block_size - request.computed, 0)
                pool.release(blocks[first:], awaited=returns)
        request.block_ids, request.given_back = [], []
        request.published = 0
        if self.slots is not None and request.state_slot is not None:
            self.slots.give_back(request.state_slot)
            request.state_slot = None

    def give_up(self, request: Request) -> None:
        """A preempted request will not come back for its blocks. Mutates the eviction order."""
        for pool in self.pools:
            pool.give_up(request.digests)

    def keep(self, kept: Kept) -> None:
        """Forget the blocks of this sequence after all others, instead of what the owner kept before; see `Pins`. Where
        there is a window, those of the last one."""
        digests: list[bytes] = []
        if self.prefix_cache:
            size = self.pools.block_size
            full = min([len(kept.token_ids) // size, *self.pools.most_whole_pins])
            extend_digests(digests, kept.token_ids, kept.salt, size, full, kept.shared_tokens, kept.namespace)
        for pool, first in zip(self.pools, self._first_blocks_at(len(digests)), strict=True):
            pool.pins.keep(kept.owner, digests[first:], kept.lasting, kept.namespace)

    def let_go_of(self, namespace: bytes) -> None:
        """What was kept of this namespace is kept no longer. Mutates the eviction order."""
        for pool in self.pools:
            pool.pins.let_go_of(namespace)

    def check(self, request: Request) -> None:
        """Prove that a running request holds, once each, the blocks of what it computes and of what that reads, and no
        others; raises InvariantError. Mutates nothing."""
        size, name = self.pools.block_size, f"request {request.request_id}"
        first = self.pools.first_blocks(request.computed)
        if request.given_back != first:
            raise InvariantError(
                f"{name} has given {request.given_back} blocks back and {first} lie behind its windows"
            )
        for pool, blocks, least in zip(self.pools, request.block_ids, first, strict=True):
            held = blocks[least:]
            if blocks[:least] != [GIVEN_BACK] * least or GIVEN_BACK in held or len(set(held)) != len(held):
                raise InvariantError(f"{name} holds blocks {blocks}, of which it needs none before the {least}-th")
            if request.computed > len(blocks) * size:
                raise InvariantError(f"{name} holds {len(blocks) * size} slots for {request.computed} tokens")
            if not all(map(pool.may_write, blocks[request.computed // size :])):
                raise InvariantError(f"{name} would write a block that is shared or published")

    def _extend(self, request: Request, counts: Sequence[int]) -> None:
        for pool, held, count in zip(self.pools, request.block_ids, counts, strict=True):
            if count > 0:
                held += self._allocate(pool, count)

    def _blocks_ahead(self, request: Request, computed: int, guesses: int = 0) -> Counts:
        """Of each group, how long the list of a request's blocks is to be once so many tokens are computed."""
        tokens, blocks_for = len(request.known) + guesses, self.pools.blocks_for
        if not self.pools.windowed:
            return (blocks_for(tokens),) * len(self.pools)
        return tuple(
            [blocks_for(group.tokens_ahead(tokens, computed, self._chunk_tokens)) for group in self.pools.groups]
        )

    def _allocate(self, pool: BlockPool, count: int) -> list[int]:
        self.reserved_slots += count * self.pools.block_size
        return pool.allocate(count)

    def _give_back_behind(self, request: Request, group: int, position: int) -> None:
        """Hold nothing any more of what no row from a position on reads."""
        first, held = self.pools.groups[group].first_block(position, self.pools.block_size), request.block_ids[group]
        before = request.given_back[group]
        if first > before:
            self.pools.pools[group].release(held[before:first])
            held[before:first] = [GIVEN_BACK] * (min(first, len(held)) - before)
            request.given_back[group] = first

    def _may_load(self, request: Request, found: Sequence[Loadable]) -> bool:
        """Whether there are blocks for the windows behind which the request would go on. Mutates nothing."""
        end = request.computed // self.pools.block_size + len(found)
        ahead, first = self._blocks_ahead(request, end * self.pools.block_size), self._first_blocks_at(end)
        wanted = [
            max(most - max(least, len(held)), 0) if index in self.pools.windowed else 0
            for index, (most, least, held) in enumerate(zip(ahead, first, request.block_ids, strict=True))
        ]
        shared = [
            [self._found(pool, one.digest) for one in found if one.in_pool[group]]
            for group, pool in enumerate(self.pools)
        ]
        return self.pools.can_allocate(wanted, after_sharing=shared)

    def _first_blocks_at(self, block: int) -> list[int]:
        return self.pools.first_blocks(block * self.pools.block_size)

    def _slide(self, request: Request, group: int, end: int) -> None:
        """Hold the blocks of a group that rows behind the `end`-th block read, and those of their next chunk."""
        self._give_back_behind(request, group, end * self.pools.block_size)
        held = request.block_ids[group]
        held += [GIVEN_BACK] * (request.given_back[group] - len(held))
        wanted = self._blocks_ahead(request, end * self.pools.block_size)[group] - len(held)
        if wanted > 0:
            held += self._allocate(self.pools.pools[group], wanted)

    @staticmethod
    def _found(pool: BlockPool, digest: bytes) -> int:
        block_id = pool.cache.block_of(digest)
        assert block_id is not None
        return block_id

    def _exchange(self, pool: BlockPool, held: list[int], index: int, shared: int) -> None:
        """The pool's block, which is held already, instead of an own one that has not been written."""
        pool.release([held[index]])
        self.reserved_slots -= self.pools.block_size
        held[index] = shared

    def _hand_over(self, request: Request) -> None:
        """Blocks that are still to be copied, and that nobody else holds, go to the first who wants a copy."""
        for index, (other, move) in enumerate(self._copies):
            pool = self.pools.pools[move.group]
            if (
                request.block_ids
                and move.source in request.block_ids[move.group]
                and pool.reference_count(move.source) == 1
            ):
                pool.share([move.source])
                held = other.block_ids[move.group]
                held[held.index(move.target)] = move.source
                pool.release([move.target])
                self._copies[index] = (other, BlockMove(move.source, move.source, group=move.group))
        self._copies = [(other, move) for other, move in self._copies if move.source != move.target]

    def _reusable_tokens(self, request: Request) -> int:
        """The longest prefix that need not be computed: one token always is, and so is every row still to be scored."""
        outstanding = request.scored < request.prompt_tokens
        return min(request.scored, len(request.known) - 1) if outstanding else len(request.known) - 1

    def _forkable_tokens(self, request: Request, origin: Request) -> int:
        """None where the origin has given back what rows behind them would read."""
        tokens = min(self._reusable_tokens(request), request.prompt_tokens, origin.computed)
        for group in self.pools.windowed:
            if origin.given_back[group] > self.pools.groups[group].first_block(tokens, self.pools.block_size):
                return 0
        return tokens

    def _lookup(self, request: Request) -> Sequence[Sequence[int]]:
        """Of each group, the blocks of the longest prefix that need not be computed."""
        full = self._reusable_tokens(request) // self.pools.block_size
        if not self.prefix_cache or not full:
            return [()] * len(self.pools)
        return self.pools.lookup(self._digests(request, full))

    def _digests(self, request: Request, full_blocks: int) -> Sequence[bytes]:
        size, shared = self.pools.block_size, request.shared_tokens
        extend_digests(request.digests, request.known, request.cache_salt, size, full_blocks, shared, request.namespace)
        return request.digests[:full_blocks]
