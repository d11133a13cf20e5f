# SPDX-License-Identifier: Apache-2.0
"""The moves of a plan, made: copies of blocks within the KV cache, to the tier behind it and back."""

import time
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from linnet.engine.participant import Participant
from linnet.scheduler import BlockMove, CopyPrice

MEASURED_BLOCKS = 4


class Moved(NamedTuple):
    """Seconds that stores and loads took."""

    stored_s: float = 0.0
    loaded_s: float = 0.0


def make_moves(participants: Sequence[Participant], moves: Sequence[BlockMove]) -> Moved:
    """Make the moves of a plan in their order, in the states of each participant; what is of one kind and cache group
    is made at once."""
    seconds = {"copy": 0.0, "store": 0.0, "load": 0.0}
    for (kind, group), alike in groupby(moves, key=lambda move: (move.kind, move.group)):
        ends = np.array([(move.source, move.target) for move in alike], np.int32)
        sources, targets = np.ascontiguousarray(ends[:, 0]), np.ascontiguousarray(ends[:, 1])
        begin = time.perf_counter()
        for one in participants:
            if kind == "copy":
                one.executable.copy_blocks(one.states, sources, targets, group)
            elif kind == "store":
                one.executable.store_blocks(one.states, sources, one.slots[group], targets, group)
            else:
                one.executable.load_blocks(one.states, one.slots[group], sources, targets, group)
        seconds[kind] += time.perf_counter() - begin
    return Moved(seconds["store"], seconds["load"])


def measure_copies(participant: Participant, slots: Sequence[Sequence[int]]) -> tuple[CopyPrice, CopyPrice]:
    """What it takes to store a block and to load one, found with unused ``slots`` of each cache group and as many
    blocks of an idle engine.

    Twice, and the second time counts: pages are touched the first time.
    """
    stores = [
        BlockMove(block_id, slot, "store", group)
        for group, own in enumerate(slots)
        for block_id, slot in enumerate(own)
    ]
    loads = [BlockMove(move.target, move.source, "load", move.group) for move in stores]
    count = len(stores)
    store, load = CopyPrice(), CopyPrice()
    if count:
        make_moves([participant], [*stores, *loads])
        moved = make_moves([participant], [*stores, *loads])
        store.learn(count, moved.stored_s)
        load.learn(count, moved.loaded_s)
    return store, load
