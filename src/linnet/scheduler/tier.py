# SPDX-License-Identifier: Apache-2.0
"""The tier behind the prefix cache: a second store of blocks, where what the pool forgets can be found again.

Owns names, slots and the order in which slots are used again; knows nothing of memory. What is to be copied is put into
moves that precede the step which overwrites the block: all stores (block → slot), then all loads (slot → block). A slot
that such a move names is not used again before `take_moves`, so a load never finds another block's contents.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence

from .invariants import InvariantError
from .plan import BlockMove
from .prefix_cache import Forgotten


class BlockTier:
    """Digest ↔ slot, one to one, for `num_slots` blocks. The slots that are used again come from, in this order:

    * free:    nothing has been stored in them, or it was dropped;
    * spare:   the pool has the same block, so nothing is lost;
    * idle:    only this tier has it; least recently stored or found first;
    * awaited: the same, and a preempted request will come back for it: given up only for another such block.

    room: how many more blocks may be stored before the next step; None: any number.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.room: int | None = None
        self.stored_blocks = 0
        self.loaded_blocks = 0
        self._slot_of: dict[bytes, int] = {}
        self._free: list[int] = []  # and every slot from the next one on
        self._next = 0
        self._spare: OrderedDict[bytes, None] = OrderedDict()
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        self._awaited: OrderedDict[bytes, None] = OrderedDict()
        self._stores: dict[bytes, BlockMove] = {}
        self._loads: dict[bytes, BlockMove] = {}
        self._wanted: frozenset[bytes] = frozenset()

    def __len__(self) -> int:
        """How many slots have names."""
        return len(self._slot_of)

    def __contains__(self, digest: bytes) -> bool:
        """Whether a block of that name can be loaded. Mutates nothing."""
        return digest in self._slot_of

    def free_slots(self, most: int) -> Sequence[int]:
        """Slots that hold nothing, `most` of them at most. Mutates nothing."""
        return (*self._free, *range(self._next, min(self._next + most, self.num_slots)))[:most]

    @property
    def pending_stores(self) -> int:
        """Stores that the next step begins with. Mutates nothing."""
        return len(self._stores)

    def put(self, forgotten: Sequence[Forgotten]) -> None:
        """The pool forgets blocks: they can be found here from now on, but for the first ones where there is no `room`.

        A sequence is forgotten from its tail, and its tail is of no use without what comes before. Mutates: the order,
        the table, the moves and the room.
        """
        here = [one for one in forgotten if one.digest in self._slot_of]
        for one in here:  # before their slots are used again
            self._file(one.digest, self._awaited if one.awaited else self._idle)
        for one in reversed(forgotten):
            if one.digest in self._slot_of:
                continue
            slot = None if self.room == 0 else self._claim(one.awaited)
            if slot is not None:
                self._slot_of[one.digest] = slot
                self._stores[one.digest] = BlockMove(one.block_id, slot, "store")
                self.stored_blocks += 1
                self.room = None if self.room is None else self.room - 1
        for one in forgotten:
            if one.digest in self._slot_of:
                self._file(one.digest, self._awaited if one.awaited else self._idle)

    def load(self, digest: bytes, block_id: int) -> None:
        """Have a block that is here copied into one of the pool, which then has it too. Mutates moves and order."""
        if digest in self._loads:
            raise InvariantError(f"slot {self._slot_of[digest]} is loaded twice in one step")
        self._loads[digest] = BlockMove(self._slot_of[digest], block_id, "load")
        self.loaded_blocks += 1
        self._file(digest, self._spare)

    def keep_for_loading(self, digests: Iterable[bytes]) -> None:
        """Use the slots of these names for nothing else, instead of those of the last call: they will be loaded."""
        self._wanted = frozenset(digests)

    def pool_has(self, digest: bytes) -> None:
        """The pool has named a block so: the copy here, if there is one, can be spared. Mutates the order."""
        if digest in self._slot_of:
            self._file(digest, self._spare)

    def expect(self, digest: bytes) -> None:
        """Somebody will come back for the block of that name, if only this tier has it. Mutates the order."""
        if digest in self._idle:
            self._file(digest, self._awaited)

    def give_up(self, digest: bytes) -> None:
        """Nobody will come back for the block of that name: it counts as found now. Mutates the order."""
        if digest in self._awaited:
            self._file(digest, self._idle)

    def take_moves(self) -> tuple[BlockMove, ...]:
        """Stores and loads since the last call, in the order in which they must be made. Forgets them."""
        moves = (*self._stores.values(), *self._loads.values())
        self._stores.clear()
        self._loads.clear()
        return moves

    def clear(self) -> None:
        """Forget everything. Not while loads are pending: the pool counts on them."""
        if self._loads:
            raise InvariantError("the tier was emptied while blocks were to be loaded from it")
        self._stores.clear()
        self._slot_of.clear()
        for kind in (self._spare, self._idle, self._awaited):
            kind.clear()
        self._free, self._next = [], 0

    def index(self) -> tuple[tuple[bytes, int], ...]:
        """Names and slots of what has been stored, what is to be used again first at the front. Mutates nothing."""
        order = (*self._spare, *self._idle, *self._awaited)
        return tuple((digest, self._slot_of[digest]) for digest in order if digest not in self._stores)

    def restore(self, index: Iterable[tuple[bytes, int]]) -> None:
        """Know an earlier tier's blocks, by its `index`; nothing may have been put here before. Mutates the table."""
        if self._slot_of:
            raise InvariantError("a tier that has blocks was told of an earlier one's")
        used: set[int] = set()
        for digest, slot in index:
            if slot in used or not 0 <= slot < self.num_slots or digest in self._slot_of:
                raise InvariantError(f"slot {slot} of {self.num_slots} was named twice or does not exist")
            used.add(slot)
            self._slot_of[digest] = slot
            self._idle[digest] = None
        self._next = max(used, default=-1) + 1
        self._free = sorted(set(range(self._next)) - used, reverse=True)

    def check(self, pool_names: Collection[bytes]) -> None:
        """Prove that every named slot has one name and one place, and that exactly what the pool names too is spare.

        Mutates nothing.
        """
        named = list(self._slot_of.values())
        if sorted([*named, *self._free]) != list(range(self._next)) or self._next > self.num_slots:
            raise InvariantError("a slot of the tier is named twice, or named and free, or neither")
        placed = [*self._spare, *self._idle, *self._awaited]
        if len(placed) != len(self._slot_of) or set(placed) != self._slot_of.keys():
            raise InvariantError("a name of the tier is in no place of the order, or in two")
        if any(digest not in pool_names for digest in self._spare):
            raise InvariantError("the tier can spare a block that the pool does not have")
        if any(digest in pool_names for digest in (*self._idle, *self._awaited)):
            raise InvariantError("the tier cannot spare a block that the pool has")
        if any(move.target != self._slot_of.get(digest) for digest, move in self._stores.items()):
            raise InvariantError("a block is to be stored in a slot that has another name by now")
        if any(move.source != self._slot_of.get(digest) for digest, move in self._loads.items()):
            raise InvariantError("a block is to be loaded from a slot that has another name by now")

    def _claim(self, awaited: bool) -> int | None:
        """A slot to be written, whose block is dropped; None if all are better kept."""
        if self._free:
            return self._free.pop()
        if self._next < self.num_slots:
            self._next += 1
            return self._next - 1
        for kind in (self._spare, self._idle, self._awaited)[: 3 if awaited else 2]:
            for digest in kind:
                if digest not in self._stores and digest not in self._loads and digest not in self._wanted:
                    del kind[digest]
                    return self._slot_of.pop(digest)
        return None

    def _file(self, digest: bytes, kind: "OrderedDict[bytes, None]") -> None:
        """The most recent one of its kind from now on."""
        for other in (self._spare, self._idle, self._awaited):
            other.pop(digest, None)
        kind[digest] = None
