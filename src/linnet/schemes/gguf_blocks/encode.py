# SPDX-License-Identifier: Apache-2.0
"""Weights -> blocks, with little error: sum over columns of importance * (w - what the block says)^2.

Each group gets the scale (and minimum) that loses least (fit_scale.py, fit_range.py); then everything is rounded as it
is stored, codes are taken anew with the rounded scales, and scales anew for those codes, for as long as that helps.
What ggml's plain rounding would have given is one of the trials of one-level types, so these never lose more.
Two-level types: encode_two_levels.py. Codes and scales that a block can hold as they are: exact.py.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, ConfigError
from linnet.schemes.gguf_blocks import fit_range, fit_scale
from linnet.schemes.gguf_blocks.block_type import BlockScales, BlockType
from linnet.schemes.gguf_blocks.encode_two_levels import encode_minimums, encode_scales
from linnet.schemes.gguf_blocks.weighing import inverse, squared_error, take_better, to_fp16, weigh
from linnet.schemes.gguf_blocks.weights import join

Array = npt.NDArray[Any]

ENCODED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Types that ``encode`` writes."""
_CHUNK_ELEMENTS = 1 << 16
_ROUNDS = 2


def encode(kind: BlockType, weight: Array, importance: Array | None = None) -> Array:
    """A weight [rows, columns] of any float type -> blocks uint8 [rows, blocks, block bytes].

    ``importance`` [columns], not negative: what a squared error in a column counts (mean square of that input; default:
    all alike). Raises ConfigError if the type is not among ENCODED or its blocks do not divide the columns,
    CheckpointError if the weight holds NaN, infinity, or values whose scale fp16 cannot hold.
    """
    rows, columns = weight.shape
    if kind.name not in ENCODED:
        raise ConfigError(f"{kind.name} blocks can be read, not made; made are: {', '.join(ENCODED)}")
    if columns % kind.columns:
        raise ConfigError(f"{columns} columns are no multiple of the {kind.columns} of a {kind.name} block")
    if importance is not None:
        importance = importance.astype(np.float32) / np.float32(max(importance.max(), np.finfo(np.float32).tiny))
    blocks = np.empty((rows, columns // kind.columns, kind.nbytes), np.uint8)
    step = max(1, _CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        part = weight[start : start + step].astype(np.float32, copy=False)
        if not np.isfinite(part).all():
            raise CheckpointError(f"a weight of shape {list(weight.shape)} holds NaN or infinity, which no block can")
        blocks[start : start + step] = _encode(kind, part, importance)
    return blocks


def _encode(kind: BlockType, weight: Array, importance: Array | None) -> Array:
    rows, columns = weight.shape
    grouped = np.ascontiguousarray(weight.reshape(-1, kind.group).T)
    heavy = None
    if importance is not None:
        heavy = np.ascontiguousarray(np.tile(importance.reshape(-1, kind.group), (rows, 1)).T)
    with np.errstate(over="ignore", invalid="ignore"):  # of scales beyond fp16, refused below
        if kind.sub_scales is not None:
            codes, stored = (encode_minimums if kind.minimum else encode_scales)(kind, grouped, heavy)
        else:
            codes, stored = (_plain_minimums if kind.minimum else _plain_scales)(kind, grouped, heavy)
    for part in (stored.scale, stored.minimum):
        if part is not None and not np.isfinite(part).all():
            raise CheckpointError(f"weights as great as {np.abs(weight).max():.3g} need scales that fp16 cannot hold")
    return join(kind, codes.T.reshape(rows, columns), _in_rows(stored, rows))


def _in_rows(stored: BlockScales, rows: int) -> BlockScales:
    def shaped(part: Array | None) -> Array | None:
        return None if part is None else part.reshape(rows, -1)

    return BlockScales(
        stored.scale.reshape(rows, -1), shaped(stored.minimum), shaped(stored.scale_codes), shaped(stored.minimum_codes)
    )


def _plain_scales(kind: BlockType, weights: Array, importance: Array | None) -> tuple[Array, BlockScales]:
    """Q4_0, Q5_0, Q8_0."""
    smallest = max(kind.smallest, -127)  # Q8_0: ggml never writes -128
    weighed = weigh(weights, importance)
    at = np.argmax(np.abs(weights), axis=0)
    scale = to_fp16(np.take_along_axis(weights, at[None], axis=0)[0] / np.float32(smallest))
    codes = fit_scale.quantise(weights, inverse(scale), smallest, kind.largest)
    lowest = squared_error(weights, importance, codes, scale, None)
    trial = fit_scale.fit_scales(weights, importance, smallest, kind.largest)
    for _ in range(_ROUNDS):
        rounded = to_fp16(trial)
        own = fit_scale.quantise(weights, inverse(rounded), smallest, kind.largest)
        error = squared_error(weights, importance, own, rounded, None)
        take_better(error < lowest, (scale, rounded), (lowest, error), (codes, own))
        trial, _ = fit_scale.least_squares(weighed, importance, codes)
    return codes.astype(np.int8), BlockScales(scale)


def _plain_minimums(kind: BlockType, weights: Array, importance: Array | None) -> tuple[Array, BlockScales]:
    """Q4_1, Q5_1."""
    weighed = weigh(weights, importance)
    low, high = weights.min(axis=0), weights.max(axis=0)
    scale, minimum = to_fp16((high - low) / np.float32(kind.largest)), to_fp16(-low)
    codes = fit_range.quantise_range(weights, scale, minimum, kind.largest)
    lowest = squared_error(weights, importance, codes, scale, minimum)
    trial = fit_range.fit_ranges(weights, importance, kind.largest, below_zero=False)
    for _ in range(_ROUNDS):
        rounded = [to_fp16(part) for part in trial]
        own = fit_range.quantise_range(weights, rounded[0], rounded[1], kind.largest)
        error = squared_error(weights, importance, own, rounded[0], rounded[1])
        take_better(error < lowest, (scale, rounded[0]), (minimum, rounded[1]), (lowest, error), (codes, own))
        trial = fit_range.line(weighed, importance, codes, below_zero=False)[:2]
    return codes.astype(np.uint8), BlockScales(scale, minimum)
