# SPDX-License-Identifier: Apache-2.0
"""Who holds which block of the KV cache and which state slot, and which are free. Knows nothing of contents."""

from collections.abc import Iterator, Mapping, Sequence

from .invariants import InvariantError


class BlockAllocator:
    """Reference counts and the free list of `num_blocks` blocks. A block that nobody holds need not be free."""

    def __init__(self, num_blocks: int) -> None:
        self._reference_counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def free_blocks(self) -> int:
        """Blocks that `take` could hand out now."""
        return len(self._free)

    def reference_count(self, block_id: int) -> int:
        """How many hold the block. Mutates nothing."""
        return self._reference_counts[block_id]

    def take(self) -> int:
        """The free block that was freed last (it may still be warm in the processor's caches), now held once."""
        block_id = self._free.pop()
        self._reference_counts[block_id] = 1
        return block_id

    def hold(self, block_id: int) -> None:
        """Hold a block once more; it must not be free."""
        self._reference_counts[block_id] += 1

    def let_go(self, block_ids: Sequence[int]) -> Iterator[int]:
        """Hold each block once less, from the last to the first; those that nobody holds any more, not yet free."""
        for block_id in reversed(block_ids):
            if self._reference_counts[block_id] == 0:
                raise InvariantError(f"block {block_id} is released more often than it was taken")
            self._reference_counts[block_id] -= 1
            if self._reference_counts[block_id] == 0:
                yield block_id

    def free(self, block_id: int) -> None:
        """A block that nobody holds may be handed out again."""
        self._free.append(block_id)

    def free_set(self) -> frozenset[int]:
        """The free blocks; InvariantError if one is there twice."""
        free = frozenset(self._free)
        if len(free) != len(self._free):
            raise InvariantError("a block is in the free list twice")
        return free

    def check(self, owners: Mapping[int, int] | None) -> None:
        """Prove that no count is negative, nor other than what the holders say (`owners`, absent means none)."""
        for block_id, references in enumerate(self._reference_counts):
            expected = references if owners is None else owners.get(block_id, 0)
            if references < 0 or references != expected:
                raise InvariantError(f"block {block_id} has reference count {references} and {expected} holders")


class StateSlots:
    """Places for what a sequence carries: each is held by one request, from its admission to its end or preemption."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def free_slots(self) -> int:
        """Slots that `take` could hand out now."""
        return len(self._free)

    def take(self) -> int:
        """The slot that was given back last."""
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """Nobody holds it any more."""
        self._free.append(slot)

    def check(self, held: Sequence[int]) -> None:
        """Prove that every slot is held by one request or free; raises InvariantError. Mutates nothing."""
        if sorted((*held, *self._free)) != list(range(self.num_slots)):
            raise InvariantError(
                f"state slots {sorted(held)} are held and {sorted(self._free)} free of {self.num_slots}"
            )
