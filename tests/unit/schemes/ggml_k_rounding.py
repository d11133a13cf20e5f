# SPDX-License-Identifier: Apache-2.0
"""What ggml's reference quantisers of Q4_K, Q5_K and Q6_K make of a weight, dequantised: the mark to be beaten.

Follows ``quantize_row_q4_K_ref``, ``quantize_row_q5_K_ref``, ``quantize_row_q6_K_ref`` step by step, for many groups at
once (its Python package reads these types and does not write them).
"""

from typing import Any

import numpy as np

Array = Any


def rounded(name: str, weight: Array) -> Array:
    """fp32 [rows, columns] after a round trip through ``name``."""
    blocks = weight.reshape(-1, 256)
    whole = (
        _six(blocks)
        if name == "Q6_K"
        else _with_minimums(blocks, *{"Q4_K": (15, -1.0, 20), "Q5_K": (31, -0.5, 15)}[name])
    )
    return whole.reshape(weight.shape)


def _fp16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float32)


def _with_minimums(blocks: Array, largest: int, first: float, steps: int) -> Array:
    groups = blocks.reshape(-1, 32)
    counts = np.sqrt((groups * groups).mean(axis=1))[:, None] + np.abs(groups)
    scale, minimum = _best_range(groups, counts, largest, first, steps)
    scale, minimum = scale.reshape(-1, 8), minimum.reshape(-1, 8)
    top_scale, top_minimum = scale.max(axis=1, keepdims=True), minimum.max(axis=1, keepdims=True)
    scale_codes = np.minimum(63, np.rint(63 / top_scale * scale))
    minimum_codes = np.minimum(63, np.rint(63 / top_minimum * minimum))
    own_scale = (_fp16(top_scale / 63) * scale_codes).reshape(-1, 1)
    own_minimum = (_fp16(top_minimum / 63) * minimum_codes).reshape(-1, 1)
    return np.clip(np.rint((groups + own_minimum) / own_scale), 0, largest) * own_scale - own_minimum


def _best_range(groups: Array, counts: Array, largest: int, first: float, steps: int) -> tuple[Array, Array]:
    low, high = np.minimum(groups.min(axis=1), 0), groups.max(axis=1)
    mass, sum_weight = counts.sum(axis=1), (counts * groups).sum(axis=1)
    scale, lowest = (high - low) / largest, low.copy()
    codes = np.clip(np.rint((groups - low[:, None]) / scale[:, None]), 0, largest)
    best = (counts * (scale[:, None] * codes + lowest[:, None] - groups) ** 2).sum(axis=1)
    for step in range(steps + 1):
        inverse = (first + 0.1 * step + largest) / (high - low)
        codes = np.clip(np.rint(inverse[:, None] * (groups - low[:, None])), 0, largest)
        sum_code, sum_square = (counts * codes).sum(axis=1), (counts * codes * codes).sum(axis=1)
        cross = (counts * codes * groups).sum(axis=1)
        spread = mass * sum_square - sum_code * sum_code
        own_scale = (mass * cross - sum_weight * sum_code) / spread
        own_low = (sum_square * sum_weight - sum_code * cross) / spread
        above = own_low > 0
        own_scale, own_low = np.where(above, cross / sum_square, own_scale), np.where(above, 0, own_low)
        error = (counts * (own_scale[:, None] * codes + own_low[:, None] - groups) ** 2).sum(axis=1)
        better = (spread > 0) & (error < best)
        best, scale, lowest = (
            np.where(better, new, old) for new, old in ((error, best), (own_scale, scale), (own_low, lowest))
        )
    return scale, -lowest


def _six(blocks: Array) -> Array:
    groups = blocks.reshape(-1, 16)
    at = np.argmax(np.abs(groups), axis=1)[:, None]
    greatest = np.take_along_axis(groups, at, axis=1)[:, 0]
    scale, best = np.zeros(len(groups), np.float32), np.full(len(groups), -1.0, np.float32)
    for step in (0, *range(-9, 0), *range(1, 10)):
        codes = np.clip(np.rint((-(32 + 0.1 * step) / greatest)[:, None] * groups), -32, 31)
        cross, square = (groups**3 * codes).sum(axis=1), (groups * groups * codes * codes).sum(axis=1)
        better = (square > 0) & (cross * cross > best * square)
        best, scale = np.where(better, cross * cross / square, best), np.where(better, cross / square, scale)
    scale = scale.reshape(-1, 16)
    at = np.argmax(np.abs(scale), axis=1)[:, None]
    inverse = -128 / np.take_along_axis(scale, at, axis=1)
    own = (_fp16(1 / inverse) * np.minimum(127, np.rint(inverse * scale))).reshape(-1, 1)
    return np.clip(np.rint(groups / own), -32, 31) * own
