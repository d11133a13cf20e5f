# SPDX-License-Identifier: Apache-2.0
"""Blocks come back from the tier instead of being computed again: where that is faster, and as fast as time allows.

A request's `computed` moves over the blocks that are found as it moves over tokens that are computed, so being swapped
in after a preemption, and finding a prefix that others left, are the same thing; only the last, unfilled block of a
preempted request is computed again. What a copy takes is measured, and so is a step (`cost.py`): where copying a run of
blocks would take longer than computing it, it is computed. Neither changes a bit.
"""

from dataclasses import dataclass
from math import inf

from .cost import StepCost, Work
from .plan import BlockMove, StepResult
from .request import Request
from .residency import Residency
from .step import StepBuilder

MEMORY_BLOCKS = 256
"""Copies that a price is the mean of, the last ones counting most."""


@dataclass(slots=True)
class CopyPrice:
    """Seconds of copying one block, as measured lately. 0: nothing has been measured, copying is taken to be free."""

    seconds: float = 0.0
    blocks: float = 0.0

    def learn(self, blocks: int, seconds: float) -> None:
        """Take in that so many blocks took so many seconds (> 0, or it is ignored)."""
        if blocks < 1 or seconds <= 0.0:
            return
        self.blocks = min(self.blocks, MEMORY_BLOCKS) + blocks
        self.seconds += (seconds / blocks - self.seconds) * blocks / self.blocks


class Swapping:
    """One scheduler's copies between the pools and their tiers. A block of one group is taken to cost what one of any
    other does: the mean of those that are copied."""

    def __init__(self, residency: Residency, cost: StepCost) -> None:
        self._tiers = [tier for _, tier in residency.pools.tiers]
        self.store = CopyPrice()
        self.load = CopyPrice()
        self.declined_blocks = 0
        self._residency = residency
        self._cost = cost
        self._charged_stores = 0
        self._stores_pay = True
        self._block_size = residency.pools.block_size

    def expect(self, store: CopyPrice, load: CopyPrice) -> None:
        """What copies take, as measured before the first one."""
        self.store, self.load = store, load

    def begin(self, step: StepBuilder) -> None:
        """A step is being planned. Blocks are stored only where storing and loading one is faster than computing it,
        and while the step has time."""
        self._stores_pay = not self._computing_is_faster(0, 1, self.store.seconds + self.load.seconds)
        self.charge(step)

    def charge(self, step: StepBuilder) -> None:
        """Count what those planned so far have pushed out. Mutates the step's seconds and the tier's room."""
        stores = sum(tier.pending_stores for tier in self._tiers)
        step.spend((stores - self._charged_stores) * self.store.seconds)
        self._charged_stores = stores
        self._leave_room(self._blocks_within(step.seconds_left, self.store) if self._stores_pay else 0)

    def advance(self, request: Request, step: StepBuilder) -> bool:
        """Load what is found of the request's next tokens, as far as the step has time, one block at least; where there
        are windows all of it or nothing: to stop before its end would take another window.

        False when there is more to load: then nothing is computed of it in this step. Mutates: as `Residency.load`
        does; the step's seconds, for stores as well.
        """
        self.charge(step)
        found = self._residency.loadable(request)
        loads = sum(one.loads for one in found)
        if loads and self._computing_is_faster(request.computed, len(found), loads * self.load.seconds):
            self.declined_blocks += loads
            return True
        within = self._blocks_within(step.seconds_left, self.load)
        most = loads if within is None else min(loads, max(within, 1))
        if self._residency.pools.windowed:
            most = loads
        elif loads > most:
            last = [index for index, one in enumerate(found) if one.loads][most]
            found = found[:last]
        if found:
            self._residency.load(request, found)
            step.spend(most * self.load.seconds)
        return loads == most

    def learn(self, moves: tuple[BlockMove, ...], result: StepResult) -> None:
        """Take in what the moves of a step took."""
        self._charged_stores = 0
        self._leave_room(None)
        self.store.learn(sum(move.kind == "store" for move in moves), result.stored_s)
        self.load.learn(sum(move.kind == "load" for move in moves), result.loaded_s)

    def _leave_room(self, blocks: int | None) -> None:
        for tier in self._tiers:
            tier.room = blocks

    @staticmethod
    def _blocks_within(seconds: float, price: CopyPrice) -> int | None:
        """How many can be copied in that time; None: any number."""
        return None if seconds == inf or price.seconds == 0.0 else max(int(seconds / price.seconds), 0)

    def _computing_is_faster(self, start: int, blocks: int, seconds: float) -> bool:
        """Than that many seconds, in a step that is computed anyway. Not known: no."""
        tokens = blocks * self._block_size
        work = Work(tokens, 0, 0, tokens * start + tokens * (tokens + 1) // 2)
        return self._cost.known and self._cost.more(work) < seconds
