# SPDX-License-Identifier: Apache-2.0
"""Scale and minimum of a group of unsigned codes that lose least: w = scale * code - minimum.

Codes come from trial ranges a little narrower or wider than that of the weights; for given codes scale and minimum are
a straight line through the points (code, weight), by weighted least squares (ggml's ``make_qkx2_quants``, by Kawrakow).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.schemes.gguf_blocks.weighing import clip_nearest, inverse, quotient, total, weigh

Array = npt.NDArray[Any]

_STEPS = (0.0, 0.2, -0.2, 0.4, -0.4, 0.6, -0.6, 0.8, -0.8, 1.0, -1.0)
"""By how many codes the range may be widened: negative ones make the extremes miss the ends."""


def fit_ranges(weights: Array, importance: Array | None, largest: int, below_zero: bool) -> tuple[Array, Array]:
    """fp32 scales and minimums [groups] for ``weights`` [elements, groups]; ``importance`` likewise.

    ``below_zero``: the minimum may not be negative, as in types that store it unsigned.
    """
    low, width = _range(weights, below_zero)
    scale, minimum = width / np.float32(largest), -low
    best_gain = np.full(len(low), -np.inf, np.float32)
    weighed = weigh(weights, importance)
    for step in _STEPS:
        codes = quantise_range(weights, width / np.float32(largest + step), -low, largest)
        *own, gain = line(weighed, importance, codes, below_zero)
        better = gain > best_gain
        for kept, value in ((scale, own[0]), (minimum, own[1]), (best_gain, gain)):
            np.copyto(kept, value, where=better)
    return scale, minimum


def quantise_range(weights: Array, scale: Array, minimum: Array, largest: int) -> Array:
    """Nearest codes, as fp32 [elements, groups]; all 0 where the scale is 0."""
    codes = weights + minimum
    codes *= inverse(scale)
    return clip_nearest(codes, 0, largest)


def line(weighed: Array, importance: Array | None, codes: Array, below_zero: bool) -> tuple[Array, Array, Array]:
    """The best scale and minimum [groups] for given codes, and how much of sum(h w^2) they explain.

    ``weighed`` is h w.
    """
    mass = np.float32(len(codes)) if importance is None else total(importance)
    heavy = weigh(codes, importance)
    sum_code, sum_square = total(heavy), total(heavy * codes)
    sum_weight, sum_cross = total(weighed), total(weighed * codes)
    spread = mass * sum_square - sum_code * sum_code
    scale = quotient(mass * sum_cross - sum_weight * sum_code, spread)
    minimum = quotient(sum_code * sum_cross - sum_square * sum_weight, spread)
    flat = spread <= 0  # one code for all: only the mean can be told
    np.divide(-sum_weight, mass, out=minimum, where=flat & (mass > 0))
    if below_zero:
        above = minimum < 0
        np.copyto(minimum, 0, where=above)
        np.copyto(scale, quotient(sum_cross, sum_square), where=above)
    return scale, minimum, scale * sum_cross - minimum * sum_weight


def _range(weights: Array, below_zero: bool) -> tuple[Array, Array]:
    low, high = weights.min(axis=0), weights.max(axis=0)
    if below_zero:
        np.minimum(low, 0, out=low)
    return low, high - low
