# SPDX-License-Identifier: Apache-2.0
"""The block pool: who holds which block of the KV cache, and which released blocks can be found again.

Owns integers only. Every block is in exactly one of three places:

* used:   held by one or more requests (its reference count says how many);
* cached: held by nobody, but its content is named in the prefix table, so a request may take it back;
* free:   held by nobody and named by nothing.

Eviction order is: free blocks, newest first (still warm in the processor's caches), then cached blocks, least recently
released first. A sequence is released from its tail, so its leaves are evicted before the prefix they hang on.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from linnet.errors import CapacityError, ConfigError


class InvariantError(AssertionError):
    """A law of the scheduler does not hold: a defect of Linnet or a misuse by its engine, never the user's input."""


class BlockPool:
    """Reference counts, eviction order and prefix table of `num_blocks` blocks of `block_size` token slots each."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ConfigError(
                f"a block pool of num_blocks={num_blocks}, block_size={block_size}: both must be at least 1"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._reference_counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks held by nobody that hold nothing worth finding."""
        return len(self._free)

    @property
    def cached_blocks(self) -> int:
        """Blocks held by nobody that the prefix table still names."""
        return len(self._cached)

    @property
    def available_blocks(self) -> int:
        """Blocks that `allocate` could hand out now: free and cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def used_blocks(self) -> int:
        """Blocks held by at least one request."""
        return self.num_blocks - self.available_blocks

    def reference_count(self, block_id: int) -> int:
        """How many requests hold the block. Mutates nothing."""
        return self._reference_counts[block_id]

    def may_write(self, block_id: int) -> bool:
        """Whether the block is held once and not published: nobody else can be reading it. Mutates nothing."""
        return self._reference_counts[block_id] == 1 and block_id not in self._digest_of

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold `tokens` token slots. Mutates nothing."""
        return -(-tokens // self.block_size)

    def can_allocate(self, count: int, after_sharing: Sequence[int] = ()) -> bool:
        """Whether `allocate(count)` would succeed once `after_sharing` has been shared. Mutates nothing.

        Sharing a cached block takes it away from what can be allocated, which is why the two are asked together.
        """
        taken = sum(1 for block_id in after_sharing if self._reference_counts[block_id] == 0)
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
        taken: list[int] = []
        for _ in range(count):
            if not self._free:
                self.evict(1)
            block_id = self._free.pop()
            self._reference_counts[block_id] = 1
            taken.append(block_id)
        return taken

    def share(self, block_ids: Sequence[int]) -> None:
        """Hold each block once more; all must be used or cached (what `lookup` returns is).

        Mutates: reference counts; a cached block leaves the eviction order and keeps its table entry.
        """
        for block_id in block_ids:
            if self._reference_counts[block_id] == 0:
                if block_id not in self._cached:
                    raise InvariantError(f"block {block_id} is free: only used and cached blocks can be shared")
                del self._cached[block_id]
            self._reference_counts[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Hold each block once less, from the last to the first.

        Mutates: reference counts; a block that nobody holds any more becomes cached (most recently released) when the
        table names it, and free otherwise. The table itself is not touched.
        """
        for block_id in reversed(block_ids):
            if self._reference_counts[block_id] == 0:
                raise InvariantError(f"block {block_id} is released more often than it was taken")
            self._reference_counts[block_id] -= 1
            if self._reference_counts[block_id] == 0:
                if block_id in self._digest_of:
                    self._cached[block_id] = None
                else:
                    self._free.append(block_id)

    def publish(self, block_id: int, digest: bytes) -> bool:
        """Name a used block whose every slot has been written; False when another block already has that name.

        Mutates: the prefix table, unless the digest is already there. A duplicate keeps working for its holder and
        becomes free when released: one name, one block.
        """
        if self._reference_counts[block_id] == 0:
            raise InvariantError(f"block {block_id} is published but held by nobody")
        if digest in self._block_of:
            return self._block_of[digest] == block_id
        if block_id in self._digest_of:
            raise InvariantError(f"block {block_id} is published under a second name: published blocks never change")
        self._block_of[digest] = block_id
        self._digest_of[block_id] = digest
        return True

    def lookup(self, digests: Sequence[bytes]) -> tuple[int, ...]:
        """The blocks of the longest known prefix of `digests`. Mutates nothing: `share` them to keep them."""
        found: list[int] = []
        for digest in digests:
            block_id = self._block_of.get(digest)
            if block_id is None:
                break
            found.append(block_id)
        return tuple(found)

    def evict(self, count: int | None = None) -> int:
        """Forget up to `count` cached blocks (None: all), least recently released first; returns how many.

        Mutates: their table entries go, the blocks become free. Used blocks keep their names.
        """
        wanted = len(self._cached) if count is None else min(count, len(self._cached))
        for _ in range(wanted):
            block_id, _ = self._cached.popitem(last=False)
            del self._block_of[self._digest_of.pop(block_id)]
            self._free.append(block_id)
        return wanted

    def check(self, owners: Mapping[int, int] | None = None) -> None:
        """Prove the pool's invariants in both directions; raises InvariantError naming the block. Mutates nothing.

        `owners` (block id → number of holders, absent means none) is what the holders themselves say; with it every
        reference count must be equal to it, so that neither a leak nor a double release can hide.
        """
        free = set(self._free)
        if len(free) != len(self._free):
            raise InvariantError("a block is in the free list twice")
        if self.free_blocks + self.used_blocks + self.cached_blocks != self.num_blocks:
            raise InvariantError("free + used + cached is not the total")
        if sum(1 for references in self._reference_counts if references > 0) != self.used_blocks:
            raise InvariantError("the number of blocks with holders is not total - free - cached")
        for block_id, references in enumerate(self._reference_counts):
            expected = references if owners is None else owners.get(block_id, 0)
            if references < 0 or references != expected:
                raise InvariantError(f"block {block_id} has reference count {references} and {expected} holders")
            places = (references > 0) + (block_id in free) + (block_id in self._cached)
            if places != 1:
                raise InvariantError(f"block {block_id} is in {places} of the places used, free, cached")
            named = block_id in self._digest_of
            if named and block_id in free:
                raise InvariantError(f"block {block_id} is free and still named in the prefix table")
            if not named and block_id in self._cached:
                raise InvariantError(f"block {block_id} is cached without a name")
        if owners is not None:
            unknown = [block_id for block_id in owners if not 0 <= block_id < self.num_blocks]
            if unknown:
                raise InvariantError(f"blocks {unknown} are held and do not exist")
        if len(self._block_of) != len(self._digest_of):
            raise InvariantError("the prefix table and its inverse differ in size")
        for digest, block_id in self._block_of.items():
            if self._digest_of.get(block_id) != digest:
                raise InvariantError(f"the prefix table names block {block_id} under a digest it does not have")
