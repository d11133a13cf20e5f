# SPDX-License-Identifier: Apache-2.0
"""Numbers to the codes of a scheme with little error: of several scales per group, the one that loses least.

Trials are the extremes of a group drawn in by a factor, what lies outside being cut off: fewer numbers at the ends,
finer steps for all others. Scales that are powers of two are tried one above and one below instead; 8 bits have steps
so fine that only the extremes themselves are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.schemes import Scheme, dequantize, quantize
from linnet.schemes.codecs import exact_scales, extremes, per_weight, scales_of_range

Array = npt.NDArray[Any]
Codes = tuple[Array, Array, Array | None]
"""Codes [rows, columns], scales and zero points in their scheme's shape."""

FACTORS: Mapping[int, tuple[float, ...]] = {
    4: (1.0, 0.95, 0.9, 0.85),
    3: (1.0, 0.94, 0.88, 0.8, 0.7),
    2: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5),
}
"""Bits -> what the extremes are multiplied with; the fewer codes there are, the more it helps."""
POWERS = (1.0, 2.0, 0.5)


def round_weight(values: Array, scheme: Scheme, lowest_zero_point: int) -> Codes:
    """fp32 [rows, columns] -> codes; zero points are at least ``lowest_zero_point``. CheckpointError: NaN, infinity."""
    if scheme.numbers.few:
        scale = exact_scales(values, scheme)
        return quantize(values, scheme, scale), scale, None
    low, high = extremes(values, scheme)
    if not scheme.symmetric:  # room below zero, so that the zero point is not less
        steps = np.float32(scheme.numbers.largest - lowest_zero_point)
        low = np.minimum(low, high * np.float32(scheme.numbers.smallest - lowest_zero_point) / steps)

    def drawn_in(factor: float) -> Codes:
        scale, zero_point = scales_of_range(low * np.float32(factor), high * np.float32(factor), scheme)
        return quantize(values, scheme, scale, zero_point), scale, zero_point

    first, *others = _factors(scheme)
    best = drawn_in(first)
    if not others:
        return best
    lowest = _errors(values, scheme, best)
    for trial in map(drawn_in, others):
        error = _errors(values, scheme, trial)
        take = error < lowest
        best, lowest = merged(best, trial, take, scheme), np.where(take, error, lowest)
    return best


def merged(first: Codes, second: Codes, take: Array, scheme: Scheme) -> Codes:
    """``second`` where ``take`` (in the shape of the scales) says so, else ``first``."""
    rows, columns = first[0].shape
    codes = np.where(per_weight(take, scheme, (rows, columns)), second[0], first[0])
    zero_points = None if first[2] is None or second[2] is None else np.where(take, second[2], first[2])
    return codes, np.where(take, second[1], first[1]), zero_points


def _factors(scheme: Scheme) -> tuple[float, ...]:
    if scheme.scale_dtype == "e8m0":
        return POWERS
    return FACTORS.get(scheme.bits, (1.0,))


def _errors(values: Array, scheme: Scheme, made: Codes) -> Array:
    """Sum of squared errors per scale; only of schemes whose scales belong to rows."""
    off = dequantize(made[0], scheme, made[1], made[2])
    off -= values
    off *= off
    errors: Array = off.reshape(len(values), made[1].shape[1], -1).sum(axis=2, dtype=np.float64)
    return errors
