# SPDX-License-Identifier: Apache-2.0
"""How scales are chosen: as the codecs define it (min-max), or the clipping that minimises the squared error."""

from dataclasses import replace

import numpy as np
import torch

from linnet.compress.rounding import round_into
from linnet.compress.threads import one_thread
from linnet.errors import CheckpointError
from linnet.schemes import codecs
from linnet.schemes.scheme import Scheme

SHRINK_FACTORS: tuple[float, ...] = tuple(1.0 - 0.04 * step for step in range(13))
"""Fractions of the min-max range that the search tries: 1.0 down to 0.52."""

GRAM_COLUMNS = 1024
"""Of more columns the products of all pairs cost more than they tell."""

_SLICE_ELEMENTS = 1 << 18
"""Thirteen passes over so many elements stay in the cache."""


def scales_of(
    weight: np.ndarray,
    scheme: Scheme,
    search: bool,
    importance: np.ndarray | None = None,
    inputs: torch.Tensor | None = None,
    signed: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale (``scheme.scale_dtype``) and zero point of fp32 [rows, columns], in the codecs' shapes.

    ``search``: per scale, of SHRINK_FACTORS the one with the least sum of importance * (q - w)^2, ties to the wider
    range. ``importance`` [columns] (default ones) is the mean square of each input. With ``inputs``, fp32 rows
    [n, columns], it is the squared error of what these rows make of a scale's columns instead, where these are at most
    GRAM_COLUMNS. ``signed``: scales below zero are tried too, where that is another grid (``lopsided``): the code that
    has no counterpart then lies on the other side. Scales of few values need no search, whatever ``search`` says: the
    best one is known exactly.
    """
    if scheme.numbers.few:
        return codecs.exact_scales(weight, scheme, importance), None
    scale, zero_point = codecs.compute_scales(weight, scheme)
    if not search or scheme.granularity in ("tensor", "block"):
        return scale, zero_point
    rows, columns = weight.shape
    whole = torch.from_numpy(weight)
    weights = torch.ones(columns) if importance is None else torch.from_numpy(importance)
    size = columns // scale.shape[1]
    step = max(1, _SLICE_ELEMENTS // size)
    for index in range(scale.shape[1]):
        group = slice(index * size, (index + 1) * size)
        own = weights[group] if inputs is None or size > GRAM_COLUMNS else inputs[:, group].T @ inputs[:, group]
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            values = whole[part, group].T.contiguous()
            scale[part, index], zero = search_scales(values, scheme, own, signed)
            if zero_point is not None and zero is not None:
                zero_point[part, index] = zero
    return scale, zero_point


def search_scales(
    values: torch.Tensor, scheme: Scheme, importance: torch.Tensor, signed: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """The same for one group, columns first: fp32 [columns, rows] -> scale and zero point [rows].

    ``importance``: [columns], or [columns, columns] for the error d importance d^T of a change d.
    """
    low, high = values.amin(dim=0).numpy(), values.amax(dim=0).numpy()
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise CheckpointError("a weight holds NaN or infinity and cannot be quantised")
    factors = np.array(SHRINK_FACTORS, np.float32)[:, None]
    # shrinking the range that the scale is made of; the codes are of the weights themselves
    scales, zero_points = codecs.scales_of_range(low * factors, high * factors, scheme)
    if signed and lopsided(scheme):
        scales = np.concatenate((scales, -scales))
    scale_rows = torch.from_numpy(scales.astype(np.float32))
    zero_rows = None if zero_points is None else torch.from_numpy(zero_points.astype(np.float32))
    errors, rounded = torch.empty(scale_rows.shape), torch.empty_like(values)
    with one_thread():
        for index in range(len(scales)):
            zero = None if zero_rows is None else zero_rows[index]
            difference = round_into(rounded, values, scale_rows[index], zero, scheme).sub_(values)
            if importance.ndim == 1:
                torch.mv(difference.square_().T, importance, out=errors[index])
            else:
                torch.sum((importance @ difference).mul_(difference), dim=0, out=errors[index])
    best = np.argmin(errors.numpy(), axis=0), np.arange(values.shape[1])  # the first of equals
    return scales[best], None if zero_points is None else zero_points[best]


def lopsided(scheme: Scheme) -> bool:
    """Whether the sign of a scale matters: integers that reach further on one side, and a type that has a sign."""
    numbers = scheme.numbers
    return (
        scheme.symmetric and numbers.integer and -numbers.smallest != numbers.largest and scheme.scale_dtype != "e8m0"
    )


def of_one_group(scheme: Scheme) -> Scheme:
    """The scheme of one group seen as a weight of its own: one scale per row."""
    return replace(scheme, granularity="channel", group_size=None)
