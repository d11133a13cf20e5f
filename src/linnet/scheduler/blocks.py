# SPDX-License-Identifier: Apache-2.0
"""The block pool: the allocator, the prefix cache and the tier behind it as one, for those who hold blocks.

Owns integers only. Every block is in exactly one of three places:

* used:   held by one or more requests (its reference count says how many);
* cached: held by nobody, but its content is named in the prefix cache, so a request may take it back;
* free:   held by nobody and named by nothing.

Eviction order is: free blocks, newest first (still warm in the processor's caches), then cached blocks, least recently
released first, then those of preempted requests, which will want them back, and last those that are pinned. A sequence
is released from its tail, so its leaves are evicted before the prefix they hang on. Where there is a tier, an evicted
block goes there.
"""

from collections.abc import Mapping, Sequence

from linnet.errors import CapacityError, ConfigError

from .allocator import BlockAllocator
from .invariants import InvariantError
from .pins import Pins
from .prefix_cache import PrefixCache
from .tier import BlockTier


class BlockPool:
    """`num_blocks` blocks of `block_size` token slots each: who holds them, and what can be found in them again.

    tier: where what they are evicted of can be found; None: it is lost.
    pins: what is evicted last, at most `most_pinned` names of it.
    """

    def __init__(self, num_blocks: int, block_size: int, tier: BlockTier | None = None, most_pinned: int = 0) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ConfigError(
                f"a block pool of num_blocks={num_blocks}, block_size={block_size}: both must be at least 1"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.allocator = BlockAllocator(num_blocks)
        self.cache = PrefixCache()
        self.tier = tier
        self.pins = Pins(self.cache, tier, most_pinned)
        self.spilled_blocks = 0
        """Pinned blocks that went to the tier."""

    @property
    def free_blocks(self) -> int:
        """Blocks held by nobody that hold nothing worth finding."""
        return self.allocator.free_blocks

    @property
    def cached_blocks(self) -> int:
        """Blocks held by nobody that the prefix table still names."""
        return len(self.cache)

    @property
    def available_blocks(self) -> int:
        """Blocks that `allocate` could hand out now: free and cached ones."""
        return self.free_blocks + self.cached_blocks

    @property
    def used_blocks(self) -> int:
        """Blocks held by at least one request."""
        return self.num_blocks - self.available_blocks

    def reference_count(self, block_id: int) -> int:
        """How many requests hold the block. Mutates nothing."""
        return self.allocator.reference_count(block_id)

    def may_write(self, block_id: int) -> bool:
        """Whether the block is held once and not published: nobody else can be reading it. Mutates nothing."""
        return self.reference_count(block_id) == 1 and block_id not in self.cache

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold `tokens` token slots. Mutates nothing."""
        return -(-tokens // self.block_size)

    def can_allocate(self, count: int, after_sharing: Sequence[int] = ()) -> bool:
        """Whether `allocate(count)` would succeed once `after_sharing` has been shared. Mutates nothing.

        Sharing a cached block takes it away from what can be allocated, which is why the two are asked together.
        """
        taken = sum(1 for block_id in after_sharing if self.reference_count(block_id) == 0)
        return count <= self.available_blocks - taken

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks in eviction order, each with reference count 1.

        Mutates: the free list and the eviction order; for every cached block taken, its entry in the prefix table is
        removed (the caller will overwrite it). Raises CapacityError, having mutated nothing, when fewer are available.
        """
        if count > self.available_blocks:
            raise CapacityError(
                f"{count} blocks of {self.block_size} tokens were asked for and {self.available_blocks} of "
                f"{self.num_blocks} are available"
            )
        free = min(self.free_blocks, count)
        taken = [self.allocator.take() for _ in range(free)]
        if count > free:
            self.evict(count - free)
        return taken + [self.allocator.take() for _ in range(count - free)]

    def share(self, block_ids: Sequence[int]) -> None:
        """Hold each block once more; all must be used or cached (what `lookup` returns is).

        Mutates: reference counts; a cached block leaves the eviction order and keeps its table entry.
        """
        for block_id in block_ids:
            if self.reference_count(block_id) == 0:
                self.cache.wake(block_id)
            self.allocator.hold(block_id)

    def release(self, block_ids: Sequence[int], awaited: bool = False) -> None:
        """Hold each block once less, from the last to the first; `awaited` if their holder will want them back.

        Mutates: reference counts; a block that nobody holds any more becomes cached (most recently released) when the
        table names it, and free otherwise. The table itself is not touched.
        """
        for block_id in self.allocator.let_go(block_ids):
            if not self.cache.keep(block_id, awaited):
                self.allocator.free(block_id)

    def publish(self, block_id: int, digest: bytes) -> bool:
        """Name a used block whose every slot has been written; False when another block already has that name.

        Mutates: the prefix table, unless the digest is already there. A duplicate keeps working for its holder and
        becomes free when released: one name, one block. A copy in the tier can be spared from then on.
        """
        if self.reference_count(block_id) == 0:
            raise InvariantError(f"block {block_id} is published but held by nobody")
        if self.tier is not None:
            self.tier.pool_has(digest)
        return self.cache.publish(block_id, digest)

    def lookup(self, digests: Sequence[bytes]) -> tuple[int, ...]:
        """The blocks of the longest known prefix of `digests`. Mutates nothing: `share` them to keep them."""
        return self.cache.lookup(digests)

    def give_up(self, digests: Sequence[bytes]) -> None:
        """Who awaited the blocks of these names will not come back. Mutates the eviction order."""
        for digest in digests:
            self.cache.give_up(digest)
            if self.tier is not None:
                self.tier.give_up(digest)

    def evict(self, count: int | None = None) -> int:
        """Forget up to `count` cached blocks (None: all) in eviction order; returns how many.

        Mutates: their table entries go, the blocks become free; the tier, if there is one, as `put` does. Used blocks
        keep their names.
        """
        evicted = tuple(self.cache.forget(count))
        if self.tier is not None:
            self.tier.put(evicted)
            self.spilled_blocks += sum(self.cache.is_pinned(one.digest) and one.digest in self.tier for one in evicted)
        for one in reversed(evicted):  # so that they are taken in eviction order
            self.allocator.free(one.block_id)
        return len(evicted)

    def forget(self) -> int:
        """Forget all cached blocks, here and in the tier; returns how many of here. Used blocks keep their names."""
        forgotten = 0
        for one in self.cache.forget():
            self.allocator.free(one.block_id)
            forgotten += 1
        if self.tier is not None:
            self.tier.clear()
        return forgotten

    def check(self, owners: Mapping[int, int] | None = None) -> None:
        """Prove the pool's invariants in both directions; raises InvariantError naming the block. Mutates nothing.

        `owners` (block id → number of holders, absent means none) is what the holders themselves say; with it every
        reference count must be equal to it, so that neither a leak nor a double release can hide.
        """
        free = self.allocator.free_set()
        if self.free_blocks + self.used_blocks + self.cached_blocks != self.num_blocks:
            raise InvariantError("free + used + cached is not the total")
        held = [block_id for block_id in range(self.num_blocks) if self.reference_count(block_id) > 0]
        if len(held) != self.used_blocks:
            raise InvariantError("the number of blocks with holders is not total - free - cached")
        self.allocator.check(owners)
        self.cache.check()
        if self.tier is not None:
            self.tier.check(self.cache.names)
        self.pins.check()
        for block_id in range(self.num_blocks):
            places = (self.reference_count(block_id) > 0) + (block_id in free) + self.cache.is_idle(block_id)
            if places != 1:
                raise InvariantError(f"block {block_id} is in {places} of the places used, free, cached")
            if block_id in free and block_id in self.cache:
                raise InvariantError(f"block {block_id} is free and still named in the prefix table")
        if owners is not None:
            unknown = [block_id for block_id in owners if not 0 <= block_id < self.num_blocks]
            if unknown:
                raise InvariantError(f"blocks {unknown} are held and do not exist")
