# SPDX-License-Identifier: Apache-2.0
"""A SentencePiece vocabulary -> the merges of a BPE tokenizer that cuts text in the same way.

SentencePiece joins whichever neighbours make the best piece of the vocabulary; a BPE model wants every such pair
listed, best first. For a quarter of a million pieces half a million pairs are found among a million and a half cuts:
with hashes in numpy, since looking each cut up as a text takes seconds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_FACTOR = 0x2545F4914F6CDD1D
"""Odd, so it has an inverse modulo 2^64."""

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.intp]


def sentence_piece_merges(pieces: Sequence[str], rank: npt.NDArray[Any]) -> list[tuple[str, str]]:
    """Every pair of pieces whose concatenation is a piece, in the order of the concatenation's ``rank`` [pieces]
    (lowest first; rank < 0: never made), then longest left half first.

    Equal to transformers' ``generate_merges``, except that pairs of one rank are in the order of their pieces.
    """
    cuts = _Cuts(pieces, np.flatnonzero(rank >= 0))
    made, left, right, length = cuts.pairs()
    order = np.lexsort((-length, made, rank[made]))
    halves = (map(pieces.__getitem__, side[order].tolist()) for side in (left, right))
    return list(zip(*halves, strict=True))


class _Cuts:
    """All ways of cutting some pieces in two, and which of them leave two pieces.

    A text's hash is the sum over its characters of mix(character) * FACTOR ** position, modulo 2^64: that of any part
    follows from sums over the whole. Two of a million texts share one with a chance of 1e-7, and then the library
    refuses the pair, as it is no piece.
    """

    def __init__(self, pieces: Sequence[str], wanted: Indices) -> None:
        characters = np.frombuffer("".join(pieces).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
        lengths = np.fromiter(map(len, pieces), np.intp, len(pieces))
        starts = np.concatenate(([0], np.cumsum(lengths)))
        longest = int(lengths.max(initial=0))
        inverse = np.uint64(pow(_FACTOR, -1, 1 << 64))
        self._inverse_powers = _powers(inverse, longest)
        owner = np.repeat(np.arange(len(pieces)), lengths)
        position = np.arange(len(characters)) - starts[owner]
        terms = _mix(characters) * _powers(np.uint64(_FACTOR), longest)[position]
        self._sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)))
        self._starts = starts
        whole = self._sums[starts[1:]] - self._sums[starts[:-1]]
        self._order = np.argsort(whole, kind="stable")
        self._sorted = whole[self._order]
        is_wanted = np.zeros(len(pieces), np.bool_)
        is_wanted[wanted] = True
        self._at = np.flatnonzero((position > 0) & is_wanted[owner])
        self._owner, self._position = owner[self._at], position[self._at]

    def pairs(self) -> tuple[Indices, Indices, Indices, Indices]:
        """Indices of whole, left and right piece, and the left one's characters."""
        left = self._find(self._sums[self._at] - self._sums[self._starts[self._owner]])
        found = left >= 0
        at, owner, position, left = self._at[found], self._owner[found], self._position[found], left[found]
        right = self._find((self._sums[self._starts[owner + 1]] - self._sums[at]) * self._inverse_powers[position])
        found = right >= 0
        return owner[found], left[found], right[found], position[found]

    def _find(self, hashes: Hashes) -> Indices:
        at = np.searchsorted(self._sorted, hashes)
        at[at == len(self._sorted)] = 0
        return np.where(self._sorted[at] == hashes, self._order[at], -1) if len(self._sorted) else at


def _powers(base: np.uint64, count: int) -> Hashes:
    factors = np.full(count + 1, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _mix(values: Hashes) -> Hashes:
    """Neighbouring characters to unrelated numbers (the middle of SplitMix64)."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
