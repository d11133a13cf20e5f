# SPDX-License-Identifier: Apache-2.0
"""Codes and scales of another form as blocks that mean exactly the same, where there are such blocks.

One-level types hold any scales that fp16 holds. Two-level types need scales of a block that are small whole multiples
of one fp16 number: the greatest common divisor tells, since every fp16 number is a whole multiple of 2 ** -24.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.schemes.gguf_blocks.block_type import BlockScales, BlockType
from linnet.schemes.gguf_blocks.weights import join

Array = npt.NDArray[Any]

_SMALLEST_FP16 = -24
_GREATEST_FP16 = 65504.0


def exact_blocks(kind: BlockType, numbers: Array, scales: Array) -> Array | str:
    """Blocks that mean ``numbers * scales``, or a sentence saying why there are none.

    ``numbers`` [rows, columns]: whole numbers (codes with their zero point subtracted); ``scales`` fp32 [rows, groups],
    [rows, 1] or [1, 1], each for columns / groups columns. Only types of whole numbers: no codebook can be hit.
    """
    rows, columns = numbers.shape
    if kind.codebook is not None:
        return f"{kind.name} has a codebook"
    if columns % kind.columns:
        return f"{columns} columns are no multiple of the {kind.columns} of a {kind.name} block"
    spread = _one_per_group(np.broadcast_to(scales, (rows, scales.shape[1])), columns, kind.group)
    if spread is None:
        return f"groups of {columns // scales.shape[1]} columns share a scale, {kind.group} do in {kind.name}"
    numbers = numbers.astype(np.int32)
    if kind.minimum:
        lift = _lifts(kind, numbers)
        numbers = numbers + np.repeat(lift, kind.group, axis=1)
    low, high = int(numbers.min()), int(numbers.max())
    if low < kind.smallest or high > kind.largest:
        return f"codes reach from {low} to {high}, {kind.name}'s from {kind.smallest} to {kind.largest}"
    minimums = spread * lift if kind.minimum else None
    stored = _one_level(spread, minimums) if kind.sub_scales is None else _two_levels(kind, spread, minimums)
    if isinstance(stored, str):
        return stored
    return join(kind, numbers.astype(np.int8 if kind.smallest < 0 else np.uint8), stored)


def _lifts(kind: BlockType, numbers: Array) -> Array:
    """What to add to the numbers of each group [rows, groups] so that they are codes.

    A power of two if one will do: the minimum then is as good an fp16 number as the scale.
    """
    grouped = numbers.reshape(len(numbers), -1, kind.group)
    low, high = grouped.min(axis=2), grouped.max(axis=2)
    power = np.where(low < 0, 2 ** np.ceil(np.log2(np.maximum(-low, 1))).astype(np.int32), 0)
    return np.where(high + power <= kind.largest, power, -low if kind.sub_scales is None else np.maximum(-low, 0))


def _one_per_group(scales: Array, columns: int, group: int) -> Array | None:
    """float64 [rows, columns / group], None if columns of one group have different scales."""
    own = columns // scales.shape[1]
    wide = scales.astype(np.float64)
    if own % group == 0:
        return np.repeat(wide, own // group, axis=1)
    if group % own:
        return None
    wide = wide.reshape(len(wide), -1, group // own)
    return wide[:, :, 0] if (wide == wide[:, :, :1]).all() else None


def _one_level(scales: Array, minimums: Array | None) -> BlockScales | str:
    for what, values in (("scale", scales), ("minimum", minimums)):
        if values is not None and not _in_fp16(values):
            return f"a {what} is no fp16 number"
    return BlockScales(scales.astype(np.float16), None if minimums is None else minimums.astype(np.float16))


def _two_levels(kind: BlockType, scales: Array, minimums: Array | None) -> BlockScales | str:
    assert kind.sub_scales is not None
    parts: list[Array | None] = []
    for what, values in (("scale", scales), ("minimum", minimums)):
        if values is None:
            parts.extend((None, None))
            continue
        whole = np.ldexp(values, -_SMALLEST_FP16).reshape(len(values), -1, kind.groups)
        if not (np.abs(whole) < 2.0**52).all() or not (whole == np.rint(whole)).all():
            return f"a {what} is no whole multiple of fp16's smallest number"
        counts = whole.astype(np.int64)
        unit = np.maximum(np.gcd.reduce(counts, axis=2), 1)
        codes = counts // unit[..., None]
        own = np.ldexp(unit.astype(np.float64), _SMALLEST_FP16)
        if int(codes.min()) < kind.sub_scales.smallest or int(codes.max()) > kind.sub_scales.largest:
            return f"the {what}s of a block are no small whole multiples of one number"
        if not _in_fp16(own):
            return f"a block's {what} is no fp16 number"
        parts.extend((own.astype(np.float16), codes.reshape(len(values), -1).astype(np.int16)))
    scale, scale_codes, minimum, minimum_codes = parts
    assert scale is not None
    return BlockScales(scale, minimum, scale_codes, minimum_codes)


def _in_fp16(values: Array) -> bool:
    if not (np.abs(values) <= _GREATEST_FP16).all():
        return False
    return bool((values.astype(np.float16).astype(np.float64) == values).all())
