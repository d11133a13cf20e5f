# SPDX-License-Identifier: Apache-2.0
"""Q2_K ... Q6_K: the scales of a block's groups become small integers that share a scale of their own.

First every group gets what loses least for it alone. The greatest of a block's scales (and of its minimums) then fixes
the block's, the others become the nearest integers, and three steps follow in turn, for as long as they help:
neighbouring integers are tried for each group with codes taken anew; the block's scale (and minimum's scale) is solved
by weighted least squares for the integers found; it is rounded to fp16. The first half is ggml's
(``quantize_row_q4_K`` ...), by Kawrakow.
Arrays: weights [elements of a group, groups], numbers of a group [groups], of a block [blocks].
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.schemes.gguf_blocks import fit_range, fit_scale
from linnet.schemes.gguf_blocks.block_type import BlockScales, BlockType, SubScales
from linnet.schemes.gguf_blocks.weighing import (
    clip_nearest,
    inverse,
    quotient,
    squared_error,
    take_better,
    to_fp16,
    total,
    weigh,
)

Array = npt.NDArray[Any]

_ROUNDS = 2
_NEAR = (0, -1, 1)


def encode_scales(kind: BlockType, weights: Array, importance: Array | None) -> tuple[Array, BlockScales]:
    """Q3_K, Q6_K: codes int8 [elements, groups] and scales of two levels."""
    sub = _sub_scales(kind)
    wanted = fit_scale.fit_scales(weights, importance, kind.smallest, kind.largest).reshape(-1, kind.groups)
    at = np.argmax(np.abs(wanted), axis=1)
    block = to_fp16(np.take_along_axis(wanted, at[:, None], axis=1)[:, 0] / np.float32(sub.smallest))
    group_codes = _nearest(wanted, block, sub.smallest, sub.largest)
    weighed = weigh(weights, importance)

    def tried(block: Array, start: Array) -> tuple[Array, Array, Array]:
        """The best neighbours of ``start`` under these block scales: codes, group codes, error per block."""
        wide = _widen(block, kind)
        codes, group_codes, lowest = np.zeros_like(weights), start.copy(), np.full(len(start), np.inf, np.float32)
        for move in _NEAR:
            trial = np.clip(start + move, sub.smallest, sub.largest)
            own = fit_scale.quantise(weights, inverse(wide * trial), kind.smallest, kind.largest)
            error = squared_error(weights, importance, own, wide * trial, None)
            take_better(error < lowest, (lowest, error), (codes, own), (group_codes, trial))
        return codes, group_codes, _per_block(lowest, kind)

    codes, group_codes, error = tried(block, group_codes)
    for _ in range(_ROUNDS):
        cross = _per_block(total(weighed * codes) * group_codes, kind)
        square = _per_block(total(weigh(codes * codes, importance)) * group_codes * group_codes, kind)
        solved = to_fp16(quotient(cross, square))
        own_codes, own_group_codes, own_error = tried(solved, group_codes)
        better = own_error < error
        take_better(better, (block, solved), (error, own_error))
        take_better(np.repeat(better, kind.groups), (group_codes, own_group_codes), (codes, own_codes))
    return codes.astype(np.int8), BlockScales(block, scale_codes=group_codes.astype(np.int8))


def encode_minimums(kind: BlockType, weights: Array, importance: Array | None) -> tuple[Array, BlockScales]:
    """Q2_K, Q4_K, Q5_K: codes uint8 [elements, groups], scales and minimums of two levels."""
    sub = _sub_scales(kind)
    fitted = fit_range.fit_ranges(weights, importance, kind.largest, below_zero=True)
    wanted = [part.reshape(-1, kind.groups) for part in fitted]
    block = [to_fp16(part.max(axis=1) / np.float32(sub.largest)) for part in wanted]
    start = [_nearest(part, own, 0, sub.largest) for part, own in zip(wanted, block, strict=True)]

    def tried(block: Sequence[Array], start: Sequence[Array]) -> tuple[Array, list[Array], Array]:
        """The best neighbours of ``start`` under these block scales: codes, group codes, error per block."""
        wide = [_widen(part, kind) for part in block]
        codes, group_codes = np.zeros_like(weights), [part.copy() for part in start]
        lowest = np.full(weights.shape[1], np.inf, np.float32)
        for moves in itertools.product(_NEAR, _NEAR):
            trial = [np.clip(part + move, 0, sub.largest) for part, move in zip(start, moves, strict=True)]
            scale, minimum = wide[0] * trial[0], wide[1] * trial[1]
            own = fit_range.quantise_range(weights, scale, minimum, kind.largest)
            error = squared_error(weights, importance, own, scale, minimum)
            pairs = zip(group_codes, trial, strict=True)
            take_better(error < lowest, (lowest, error), (codes, own), *pairs)
        return codes, group_codes, _per_block(lowest, kind)

    codes, group_codes, error = tried(block, start)
    for _ in range(_ROUNDS):
        solved = _solve_block(kind, weights, importance, codes, group_codes, block)
        own_codes, own_group_codes, own_error = tried(solved, group_codes)
        better = own_error < error
        take_better(better, (error, own_error), *zip(block, solved, strict=True))
        pairs = zip(group_codes, own_group_codes, strict=True)
        take_better(np.repeat(better, kind.groups), (codes, own_codes), *pairs)
    scale_codes, minimum_codes = (part.astype(np.uint8) for part in group_codes)
    return codes.astype(np.uint8), BlockScales(block[0], block[1], scale_codes, minimum_codes)


def _solve_block(
    kind: BlockType,
    weights: Array,
    importance: Array | None,
    codes: Array,
    group_codes: Sequence[Array],
    block: Sequence[Array],
) -> list[Array]:
    """Both block scales by least squares: w = scale * (scale code * code) - minimum * minimum code; fp16 [blocks].

    Those in ``block`` stay where one of the two cannot be told.
    """
    heavy = weigh(codes, importance)
    mass = np.float32(len(codes)) if importance is None else total(importance)
    steps, lifts = (part.astype(np.float64) for part in group_codes)
    weighed = weigh(weights, importance)
    aa = _per_block(total(heavy * codes) * steps * steps, kind)
    ab = _per_block(total(heavy) * steps * lifts, kind)
    bb = _per_block(mass * lifts * lifts, kind)
    aw = _per_block(total(weighed * codes) * steps, kind)
    bw = _per_block(total(weighed) * lifts, kind)
    spread = aa * bb - ab * ab
    scale, minimum = (part.astype(np.float64) for part in block)
    solvable = spread > 1e-6 * aa * bb
    np.divide(aw * bb - bw * ab, spread, out=scale, where=solvable)
    np.divide(aw * ab - bw * aa, spread, out=minimum, where=solvable)
    np.divide(aw, aa, out=scale, where=(bb == 0) & (aa > 0))
    return [to_fp16(scale), to_fp16(np.maximum(minimum, 0))]


def _sub_scales(kind: BlockType) -> SubScales:
    assert kind.sub_scales is not None
    return kind.sub_scales


def _nearest(wanted: Array, block: Array, smallest: int, largest: int) -> Array:
    """Group scales [blocks, groups] in units of their block's, as whole numbers, fp32, flat."""
    return clip_nearest(wanted * inverse(block)[:, None], smallest, largest).reshape(-1)


def _widen(block: Array, kind: BlockType) -> Array:
    return np.repeat(block.astype(np.float32), kind.groups)


def _per_block(numbers: Array, kind: BlockType) -> Array:
    return np.asarray(numbers.reshape(-1, kind.groups).sum(axis=1))
