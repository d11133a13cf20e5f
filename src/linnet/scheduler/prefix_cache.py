# SPDX-License-Identifier: Apache-2.0
"""The prefix cache: which blocks can be found again by their content, and in which order the idle ones are forgotten.

Knows names and nothing of who holds a block: the pool tells it when one falls idle or is taken again. What it forgets
may go elsewhere (`tier.py`) instead of being lost.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from .invariants import InvariantError


class Forgotten(NamedTuple):
    """A block that has lost its name, the name, and whether somebody will come back for it."""

    block_id: int
    digest: bytes
    awaited: bool


class PrefixCache:
    """Digest ↔ block, one to one, and the idle blocks among them, in the order in which they are forgotten.

    That is least recently released first; then those that somebody will come back for (a preempted request); and last
    those whose names are pinned (a conversation between two turns, a prompt module). A pin is on a name, whether or not
    a block has it now.
    """

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._awaited: OrderedDict[int, None] = OrderedDict()
        self._pinned: OrderedDict[int, None] = OrderedDict()
        self._pins: Counter[bytes] = Counter()
        self.pinned_blocks = 0
        """How many blocks have a pinned name, idle or not."""

    def __len__(self) -> int:
        """How many blocks are idle."""
        return len(self._idle) + len(self._awaited) + len(self._pinned)

    def __contains__(self, block_id: int) -> bool:
        """Whether the block has a name."""
        return block_id in self._digest_of

    @property
    def names(self) -> Collection[bytes]:
        """The names of all blocks that have one, idle or not. Mutates nothing."""
        return self._block_of.keys()

    def block_of(self, digest: bytes) -> int | None:
        """The block of that name. Mutates nothing."""
        return self._block_of.get(digest)

    def is_idle(self, block_id: int) -> bool:
        """Whether the block is kept although nobody holds it. Mutates nothing."""
        return any(block_id in one for one in self._orders)

    def is_pinned(self, digest: bytes) -> bool:
        """Whether the name is pinned. Mutates nothing."""
        return digest in self._pins

    @property
    def pinned_names(self) -> int:
        """How many names are pinned."""
        return len(self._pins)

    @property
    def _orders(self) -> tuple[OrderedDict[int, None], ...]:
        """The idle blocks by kind, those that are forgotten first in front."""
        return self._idle, self._awaited, self._pinned

    def lookup(self, digests: Sequence[bytes]) -> tuple[int, ...]:
        """The blocks of the longest known prefix of `digests`. Mutates nothing."""
        found: list[int] = []
        for digest in digests:
            block_id = self._block_of.get(digest)
            if block_id is None:
                break
            found.append(block_id)
        return tuple(found)

    def publish(self, block_id: int, digest: bytes) -> bool:
        """Name a block; False when another one has that name. Mutates the table, unless the digest is there."""
        if digest in self._block_of:
            return self._block_of[digest] == block_id
        if block_id in self._digest_of:
            raise InvariantError(f"block {block_id} is published under a second name: published blocks never change")
        self._block_of[digest] = block_id
        self._digest_of[block_id] = digest
        self.pinned_blocks += digest in self._pins
        return True

    def keep(self, block_id: int, awaited: bool = False) -> bool:
        """The block has fallen idle: True when it is worth keeping, as the most recently released one of its kind."""
        digest = self._digest_of.get(block_id)
        if digest is None:
            return False
        (self._pinned if digest in self._pins else self._awaited if awaited else self._idle)[block_id] = None
        return True

    def pin(self, digests: Sequence[bytes]) -> None:
        """Forget the blocks of these names last, from the last name to the first; pins on one name add up."""
        for digest in reversed(digests):
            block_id = self._block_of.get(digest)
            self.pinned_blocks += block_id is not None and digest not in self._pins
            self._pins[digest] += 1
            if block_id is not None and self.is_idle(block_id):
                self.wake(block_id)
                self._pinned[block_id] = None

    def unpin(self, digests: Sequence[bytes]) -> None:
        """Take a pin off each name; an idle block without any counts as released now. InvariantError if it has none."""
        for digest in reversed(digests):
            if digest not in self._pins:
                raise InvariantError("a name is unpinned more often than it was pinned")
            self._pins[digest] -= 1
            if self._pins[digest]:
                continue
            del self._pins[digest]
            block_id = self._block_of.get(digest)
            self.pinned_blocks -= block_id is not None
            if block_id is not None and block_id in self._pinned:
                del self._pinned[block_id]
                self._idle[block_id] = None

    def give_up(self, digest: bytes) -> None:
        """Nobody will come back for the block of that name, if it is idle: it counts as released now."""
        block_id = self._block_of.get(digest)
        if block_id is not None and block_id in self._awaited:
            del self._awaited[block_id]
            self._idle[block_id] = None

    def wake(self, block_id: int) -> None:
        """An idle block is held again; it keeps its name. Raises InvariantError for one that is not idle."""
        order = next((one for one in self._orders if block_id in one), None)
        if order is None:
            raise InvariantError(f"block {block_id} is free: only used and cached blocks can be shared")
        del order[block_id]

    def forget(self, count: int | None = None) -> Iterator[Forgotten]:
        """Up to `count` idle blocks (None: all) in their order; each has lost its name."""
        for _ in range(len(self) if count is None else min(count, len(self))):
            awaited = not self._idle
            block_id, _ = (self._idle or self._awaited or self._pinned).popitem(last=False)
            digest = self._digest_of.pop(block_id)
            del self._block_of[digest]
            self.pinned_blocks -= digest in self._pins
            yield Forgotten(block_id, digest, awaited)

    def check(self) -> None:
        """Prove that the table is one to one and that idle blocks have names. Mutates nothing."""
        if len(self._block_of) != len(self._digest_of):
            raise InvariantError("the prefix table and its inverse differ in size")
        for digest, block_id in self._block_of.items():
            if self._digest_of.get(block_id) != digest:
                raise InvariantError(f"the prefix table names block {block_id} under a digest it does not have")
        if self.pinned_blocks != sum(digest in self._block_of for digest in self._pins):
            raise InvariantError(f"{self.pinned_blocks} blocks are counted as pinned and others are")
        kinds = Counter(block_id for order in self._orders for block_id in order)
        for block_id, count in kinds.items():
            if block_id not in self._digest_of:
                raise InvariantError(f"block {block_id} is cached without a name")
            if count > 1:
                raise InvariantError(f"cached block {block_id} is of {count} of the kinds idle, awaited and pinned")
            if (block_id in self._pinned) != (self._digest_of[block_id] in self._pins):
                raise InvariantError(f"cached block {block_id} is pinned and its name is not, or the other way round")
