# SPDX-License-Identifier: Apache-2.0
"""How scales are chosen: as the codecs define it (min-max), or the clipping that minimises the squared error."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from linnet.schemes import codecs
from linnet.schemes.scheme import Scheme

SHRINK_FACTORS: tuple[float, ...] = tuple(1.0 - 0.04 * step for step in range(13))
"""Fractions of the min-max range that the search tries: 1.0 down to 0.52."""

_SLICE_ELEMENTS = 1 << 19


def scales_of(
    weight: np.ndarray, scheme: Scheme, search: bool, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale (``scheme.scale_dtype``) and zero point of fp32 [rows, columns], in the codecs' shapes.

    ``search``: per scale, of SHRINK_FACTORS the one with the least sum of importance * (q - w)^2, ties to the wider
    range. ``importance`` [columns] (default ones) is the mean square of each input. Ternary scales need no search,
    whatever ``search`` says: the best one is known exactly.
    """
    if scheme.element == "ternary":
        return codecs.ternary_scales(weight, scheme, importance), None
    scale, zero_point = codecs.compute_scales(weight, scheme)
    if not search or scheme.granularity in ("tensor", "block"):
        return scale, zero_point
    rows, columns = weight.shape
    if importance is None:
        importance = np.ones(columns, np.float32)
    step = max(1, _SLICE_ELEMENTS // columns)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        best, zero = _search(weight[part], scheme, SHRINK_FACTORS, importance)
        scale[part] = best
        if zero_point is not None and zero is not None:
            zero_point[part] = zero
    return scale, zero_point


def _search(
    weight: np.ndarray, scheme: Scheme, factors: Sequence[float], importance: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    rows, columns = weight.shape
    shape = codecs.scale_shape(scheme, (rows, columns))
    best_error = np.full(shape, np.inf, np.float32)
    best_scale, best_zero = codecs.compute_scales(weight, scheme)
    for factor in factors:
        # shrinking the weights shrinks the range that compute_scales sees; the codes are of the weights themselves
        scale, zero_point = codecs.compute_scales(weight * np.float32(factor), scheme)
        codes = codecs.quantize(weight, scheme, scale, zero_point)
        difference = codecs.dequantize(codes, scheme, scale, zero_point) - weight
        error = (difference * difference * importance).reshape(rows, shape[1], -1).sum(axis=2, dtype=np.float32)
        better = error < best_error
        best_error[better] = error[better]
        best_scale[better] = scale[better]
        if best_zero is not None and zero_point is not None:
            best_zero[better] = zero_point[better]
    return best_scale, best_zero


def of_one_group(scheme: Scheme) -> Scheme:
    """The scheme of one group seen as a weight of its own: one scale per row."""
    return replace(scheme, granularity="channel", group_size=None)
