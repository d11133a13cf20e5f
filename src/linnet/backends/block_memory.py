# SPDX-License-Identifier: Apache-2.0
"""Copies of whole blocks of a KV cache, for backends whose memory numpy can see.

Such memory is, for each cache group, a sequence of parts, views uint8 [pieces, num_blocks, bytes]: a block is the row
of that number of every piece. In a store uint8 [slots, bytes] a slot holds a block's rows one after the other, in the
order of the parts; that means something only to a cache of the same parts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

Parts = Sequence[np.ndarray]


@runtime_checkable
class BlockMemory(Protocol):
    """States whose blocks numpy can see."""

    @property
    def parts(self) -> Sequence[Parts]:
        """All of them, of each cache group."""


class BlockCopies:
    """The copies that an Executable makes, for one whose states are a BlockMemory."""

    def copy_blocks(self, states: object, sources: np.ndarray, targets: np.ndarray, group: int = 0) -> None:
        """See Executable.copy_blocks."""
        copy_blocks(_parts(states, group), sources, targets)

    def store_blocks(
        self, states: object, blocks: np.ndarray, store: np.ndarray, slots: np.ndarray, group: int = 0
    ) -> None:
        """See Executable.store_blocks."""
        store_blocks(_parts(states, group), blocks, store, slots)

    def load_blocks(
        self, states: object, store: np.ndarray, slots: np.ndarray, blocks: np.ndarray, group: int = 0
    ) -> None:
        """See Executable.load_blocks."""
        load_blocks(_parts(states, group), store, slots, blocks)


@dataclass(frozen=True)
class LayerMemory:
    """Where a layer's blocks lie: the cache group, and the bytes that a block takes in each piece of its memory."""

    group: int
    pieces: tuple[int, ...]


def parts_of(memory: np.ndarray, layers: Sequence[LayerMemory], num_blocks: Sequence[int]) -> Sequence[Parts]:
    """Views of memory uint8 in which each layer's pieces lie one after the other, as many blocks as its group has.

    Layers that follow each other and are alike share their parts, so that few copies go over many layers.
    """
    found: list[list[np.ndarray]] = [[] for _ in num_blocks]
    start = first = 0
    while first < len(layers):
        last, layer = first, layers[first]
        while last < len(layers) and layers[last] == layer:
            last += 1
        parts, blocks = found[layer.group], num_blocks[layer.group]
        stride = blocks * sum(layer.pieces)
        alike = memory[start : start + (last - first) * stride].reshape(last - first, stride)
        column = 0
        for size in layer.pieces:
            piece = alike[:, column : column + blocks * size]
            parts.append(np.lib.stride_tricks.as_strided(piece, (last - first, blocks, size), (stride, size, 1)))
            column += blocks * size
        start, first = start + alike.size, last
    return found


def bytes_per_block(parts: Parts) -> int:
    """What a block takes in a store."""
    return sum(part.shape[0] * part.shape[2] for part in parts)


def copy_blocks(parts: Parts, sources: np.ndarray, targets: np.ndarray) -> None:
    """Copy blocks [n] to as many others; no target is a source."""
    for part in parts:
        part[:, targets] = part[:, sources]


def store_blocks(parts: Parts, blocks: np.ndarray, store: np.ndarray, slots: np.ndarray) -> None:
    """Copy blocks [n] into as many slots of a store."""
    for block, slot in zip(blocks.tolist(), slots.tolist(), strict=True):
        for part, row in _rows(parts, store[slot]):
            row[:] = part[:, block]


def load_blocks(parts: Parts, store: np.ndarray, slots: np.ndarray, blocks: np.ndarray) -> None:
    """Copy slots [n] of a store into as many blocks."""
    for block, slot in zip(blocks.tolist(), slots.tolist(), strict=True):
        for part, row in _rows(parts, store[slot]):
            part[:, block] = row


def _parts(states: object, group: int) -> Parts:
    assert isinstance(states, BlockMemory)
    return states.parts[group]


def _rows(parts: Parts, slot: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each part, and where its rows of a block lie in a slot, uint8 [pieces, bytes]."""
    start = 0
    for part in parts:
        pieces, _, size = part.shape
        yield part, slot[start : start + pieces * size].reshape(pieces, size)
        start += pieces * size
