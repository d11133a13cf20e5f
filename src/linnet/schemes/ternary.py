# SPDX-License-Identifier: Apache-2.0
"""The scale of ternary weights, codes -1, 0 and 1, and of binary ones, -1 and 1, that loses least.

With a scale s the nearest codes are sign(w) where |w| > s / 2 and 0 elsewhere, so the best codes are always those of
the k greatest magnitudes, for some k. Given k, s = sum h |w| / sum h over them and the error is sum h w^2 minus
(sum h |w|)^2 / sum h: the k with the greatest such gain is found by sorting, exactly. A weight that already is ternary
(BitNet b1.58, Ma et al. 2024, exported dense) gets its own scale back; the mean of |w|, which that paper's training
divides by, is kept only by chance and loses more. Without a zero the codes are those of all magnitudes: one candidate
(the mean of |w|, as XNOR-Net has it, Rastegari et al. 2016, section 3.1).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_CHUNK_ELEMENTS = 1 << 20


def least_squares_scales(
    weight: Array,
    importance: Array | None,
    shape: tuple[int, int],
    block: tuple[int, int] | None,
    has_zero: bool = True,
) -> Array:
    """fp32 scales of the given shape (codecs.scale_shape) for a weight [rows, columns]; 0 where all weights are.

    ``importance`` [columns] weighs squared errors (default: all alike). ``has_zero``: whether 0 is a code.
    """
    scales = np.empty(shape, np.float32)
    rows, columns = weight.shape
    best = _best if has_zero else _mean
    wide = None if importance is None else importance.astype(np.float64)
    if block is not None:
        height, width = block
        for i, j in np.ndindex(shape):
            own = slice(j * width, (j + 1) * width)
            part = weight[i * height : (i + 1) * height, own]
            scales[i, j] = best(part.reshape(1, -1), None if wide is None else np.tile(wide[own], len(part)))[0]
        return scales
    if shape[0] != rows:  # one scale for the tensor
        scales[...] = best(weight.reshape(1, -1), None if wide is None else np.tile(wide, rows))[0]
        return scales
    groups = shape[1]
    size = columns // groups
    own_importance = None if wide is None else wide.reshape(groups, size)
    step = max(1, _CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        part = weight[start : start + step]
        each = None if own_importance is None else np.tile(own_importance, (len(part), 1))
        scales[start : start + step] = best(part.reshape(-1, size), each).reshape(-1, groups)
    return scales


def _best(weights: Array, importance: Array | None) -> Array:
    """One scale per row of ``weights``; importance broadcasts to them."""
    magnitude = np.abs(weights.astype(np.float32, copy=False))
    if importance is None:
        magnitude = -np.sort(-magnitude, axis=1)
        mass = np.arange(1.0, magnitude.shape[1] + 1)
        sums = np.cumsum(magnitude, axis=1, dtype=np.float64)
    else:
        order = np.argsort(-magnitude, axis=1, kind="stable")
        heavy = np.take_along_axis(np.broadcast_to(importance, magnitude.shape), order, axis=1)
        mass = np.cumsum(heavy, axis=1)
        sums = np.cumsum(heavy * np.take_along_axis(magnitude, order, axis=1), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.nan_to_num(sums / mass)  # where the greatest weights do not matter at all
    best = np.argmax(sums * scale, axis=1)
    return np.take_along_axis(scale, best[:, None], axis=1)[:, 0].astype(np.float32)


def _mean(weights: Array, importance: Array | None) -> Array:
    """The same where every code is -1 or 1."""
    magnitude = np.abs(weights.astype(np.float64))
    heavy = np.broadcast_to(1.0 if importance is None else importance, magnitude.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale: Array = np.nan_to_num((magnitude * heavy).sum(axis=1) / heavy.sum(axis=1))
    return scale.astype(np.float32)
