# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of quantisation: scales, zero points, codes and back, in fp32, without a layout.

Bit-equal with compressed-tensors (``calculate_qparams``, ``quantize``, ``dequantize``) on fp32 weights with
``scale_dtype`` set: the scale is rounded first, codes are then computed with the rounded scale. Weights of a narrower
type are widened to fp32 before anything else (compressed-tensors divides in the narrow type, which rounds twice).
Shapes: weight [rows, columns]; scale and zero point [1, 1] (tensor), [rows, 1] (channel), [rows, columns / group_size]
(group) or [ceil(rows / block rows), ceil(columns / block columns)] (block).
"""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError, ConfigError
from linnet.schemes.elements import Element
from linnet.schemes.groups import check_columns
from linnet.schemes.scheme import Scheme
from linnet.schemes.ternary import least_squares_scales

Array = npt.NDArray[Any]

FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
    "fp8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
"""What scales are stored as."""
_CHUNK_ELEMENTS = 1 << 20  # temporaries stay in cache and small


def code_range(scheme: Scheme) -> tuple[float, float]:
    """Smallest and largest code: integers, the finite range of fp8, or indices into a codebook."""
    numbers = scheme.numbers
    if scheme.minimum:
        return 0.0, numbers.largest - numbers.smallest
    return numbers.smallest, numbers.largest


def scale_shape(scheme: Scheme, shape: tuple[int, int]) -> tuple[int, int]:
    """Shape of the scale of a weight [rows, columns]; ConfigError if the group size does not divide the columns."""
    rows, columns = shape
    if scheme.granularity == "tensor":
        return 1, 1
    if scheme.granularity == "channel":
        return rows, 1
    if scheme.group_size is not None:
        check_columns("weight", columns, scheme)
        return rows, columns // scheme.group_size
    if scheme.block is not None:
        return -(-rows // scheme.block[0]), -(-columns // scheme.block[1])
    raise ConfigError(f"granularity {scheme.granularity!r} is for activations; weights: tensor, channel, group, block")


def expand(parameter: Array, scheme: Scheme, shape: tuple[int, int]) -> Array:
    """Scale or zero point -> one that broadcasts against the weight seen as [rows, groups, columns / groups]."""
    rows, columns = shape
    if scheme.block is not None:
        height, width = scheme.block
        whole = np.repeat(np.repeat(parameter, height, axis=0)[:rows], width, axis=1)[:, :columns]
        return whole[:, :, None]
    return parameter[:, :, None]


def per_weight(parameter: Array, scheme: Scheme, shape: tuple[int, int]) -> Array:
    """Scale or zero point -> the one of every weight, [rows, columns]; not to be written to."""
    grouped = expand(parameter, scheme, shape)[:, :, 0]
    return np.broadcast_to(np.repeat(grouped, shape[1] // grouped.shape[1], axis=1), shape)


def compute_scales(weight: Array, scheme: Scheme) -> tuple[Array, Array | None]:
    """Min-max scale (dtype ``scheme.scale_dtype``) and int8 zero point (None if symmetric) of a weight.

    symmetric: scale = max|w| / ((largest code - smallest code) / 2), in a narrow range / largest code; asymmetric: the
    range always holds 0; codebooks: max|w|. Ternary and binary have no use for the extremes: their scale is the one
    with the least squared error (ternary.py).
    A zero scale becomes the epsilon of its dtype. CheckpointError if the weight holds NaN or infinity.
    """
    if scheme.numbers.learned:
        raise ConfigError(f"element type {scheme.element} has tables that are learned (algorithms kmeans, squeezellm)")
    if scheme.numbers.few:
        return exact_scales(weight, scheme), None
    return scales_of_range(*extremes(weight, scheme), scheme)


def scales_of_range(low: Array, high: Array, scheme: Scheme) -> tuple[Array, Array | None]:
    """What ``compute_scales`` makes of the smallest and largest element per scale (fp32, any shape)."""
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    smallest, largest = code_range(scheme)
    zero_point: Array | None = None
    if scheme.symmetric:
        scale = np.maximum(-low, high) / np.float32(scheme.half_range)
    else:
        scale = (high - low) / np.float32(largest - smallest)
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = np.float32(smallest) - low / scale
        exact = np.where(np.isnan(exact), np.float32(0), exact)  # a group of zeros
        zero_point = np.rint(np.clip(exact, np.float32(smallest), np.float32(largest))).astype(np.int8)
    return round_scale(scale, scheme), zero_point


def round_scale(scale: Array, scheme: Scheme) -> Array:
    """fp32 scales -> ``scheme.scale_dtype``, clamped to its finite range; zeros become its epsilon."""
    dtype = FLOAT_DTYPES[scheme.scale_dtype]
    limits: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    largest = np.float32(limits.max)
    rounded = np.clip(scale.astype(np.float32, copy=False), -largest, largest).astype(dtype)
    rounded[(scale == 0) | (rounded == 0)] = limits.eps  # a power of two (e8m0) has no zero
    return rounded


def exact_scales(weight: Array, scheme: Scheme, importance: Array | None = None) -> Array:
    """Scale of a weight of few values with the least sum of importance * (scale * code - w)^2; importance [columns].

    CheckpointError if the weight holds NaN or infinity.
    """
    extremes(weight, scheme)
    has_zero = scheme.numbers.step == 1
    shape = scale_shape(scheme, weight.shape)
    return round_scale(least_squares_scales(weight, importance, shape, scheme.block, has_zero), scheme)


def extremes(weight: Array, scheme: Scheme) -> tuple[Array, Array]:
    """Smallest and largest element per scale, fp32, in the scale's shape; CheckpointError if one is not finite."""
    rows, columns = weight.shape
    shape = scale_shape(scheme, (rows, columns))
    height = scheme.block[0] if scheme.block is not None else 1
    step = max(1, _CHUNK_ELEMENTS // max(1, columns * height)) * height
    lows, highs = [], []
    for start in range(0, rows, step):
        part = weight[start : start + step].astype(np.float32, copy=False)
        if scheme.block is not None:
            row_starts, column_starts = range(0, len(part), height), range(0, columns, scheme.block[1])
            lows.append(np.minimum.reduceat(np.minimum.reduceat(part, row_starts, axis=0), column_starts, axis=1))
            highs.append(np.maximum.reduceat(np.maximum.reduceat(part, row_starts, axis=0), column_starts, axis=1))
        else:
            grouped = part.reshape(len(part), shape[1], -1)
            lows.append(grouped.min(axis=2))
            highs.append(grouped.max(axis=2))
    low, high = np.concatenate(lows), np.concatenate(highs)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise CheckpointError(f"a weight of shape {list(weight.shape)} holds NaN or infinity and cannot be quantised")
    if scheme.granularity == "tensor":
        low, high = low.min(keepdims=True), high.max(keepdims=True)
    return low, high


def quantize(weight: Array, scheme: Scheme, scale: Array | None = None, zero_point: Array | None = None) -> Array:
    """Weight [rows, columns] (any float type) -> codes of the same shape.

    int: int8 signed codes round-half-even(clamp(w / scale + zero point)); fp8: float8_e4m3fn values; codebooks: uint8
    index of the nearest value. Scales are those of ``compute_scales`` if not given.
    """
    if scale is None:
        scale, zero_point = compute_scales(weight, scheme)
    rows, columns = weight.shape
    expected = scale_shape(scheme, (rows, columns))
    if scale.shape != expected:
        raise ConfigError(f"scale of shape {list(scale.shape)} does not fit, {list(expected)} is needed")
    if not scheme.symmetric and zero_point is None:
        raise ConfigError("an asymmetric scheme needs a zero point with its scale")
    numbers = scheme.numbers
    codes = np.empty((rows, columns), dtype=numbers.code_type)
    smallest, largest = code_range(scheme)
    wide_scale = expand(scale.astype(np.float32), scheme, (rows, columns))
    wide_zero = None if zero_point is None else expand(zero_point.astype(np.float32), scheme, (rows, columns))
    step = max(1, _CHUNK_ELEMENTS // max(1, columns))
    groups = wide_scale.shape[1]
    for start in range(0, rows, step):
        part = slice(start, min(rows, start + step))
        own = slice(None) if wide_scale.shape[0] == 1 else part
        block = weight[part].astype(np.float32).reshape(part.stop - start, groups, -1)
        block /= wide_scale[own]
        out = codes[part].reshape(block.shape)
        if numbers.values is not None:
            out[...] = numbers.ascending[np.searchsorted(numbers.midpoints, block, side="left")]
            continue
        # without a zero point still + 0, as compressed-tensors does: no code is minus zero
        block += np.float32(0) if wide_zero is None else wide_zero[own]
        np.clip(block, np.float32(smallest), np.float32(largest), out=block)
        out[...] = _nearest_codes(block, numbers) if numbers.integer else block.astype(numbers.code_type)
    return codes


def _nearest_codes(block: Array, numbers: Element) -> Array:
    """Numbers within the range of codes -> the nearest codes, in place; halves to even, or up where codes are apart:
    halves are multiples of the step then, and nothing is added first, which would lose the sign of what is small."""
    if numbers.step == 1:
        return np.rint(block, out=block)
    step = np.float32(numbers.step)
    np.floor(block / step, out=block)
    return block * step + np.float32(numbers.smallest + numbers.step)


def dequantize(
    codes: Array, scheme: Scheme, scale: Array, zero_point: Array | None = None, minimum: Array | None = None
) -> Array:
    """codes [rows, columns] -> fp32 [rows, columns]: (code - zero point) * scale, one fp32 product per element, or
    code * scale - minimum, a product and a difference. ``minimum`` is fp32 in the scale's shape."""
    rows, columns = codes.shape
    wide_scale = expand(scale.astype(np.float32), scheme, (rows, columns))
    wide_zero = None if zero_point is None else expand(zero_point.astype(np.float32), scheme, (rows, columns))
    output = np.empty((rows, columns), dtype=np.float32)
    grouped = output.reshape(rows, wide_scale.shape[1], -1)
    if scheme.numbers.values is not None:
        np.take(scheme.numbers.values, codes, out=output)
    else:
        output[...] = codes
    if wide_zero is not None:
        grouped -= wide_zero
    grouped *= wide_scale
    if minimum is not None:
        grouped -= expand(minimum, scheme, (rows, columns))
    return output
