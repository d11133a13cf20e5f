# SPDX-License-Identifier: Apache-2.0
"""Sums over the elements of groups, each weighed by its importance. Groups lie in columns: [elements, groups].

Every operation so runs along many groups at once. ``importance`` None means all alike, which saves a product each time.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def weigh(values: Array, importance: Array | None) -> Array:
    """``values`` times their importance; ``values`` itself if all count alike."""
    return values if importance is None else values * importance


def total(values: Array) -> Array:
    """Sum over the elements of each group."""
    return np.asarray(np.add.reduce(values, axis=0))


def squared_error(weights: Array, importance: Array | None, codes: Array, scale: Array, minimum: Array | None) -> Array:
    """[groups]: sum of importance * (code * scale - minimum - weight)^2."""
    off = codes * scale.astype(np.float32, copy=False)
    if minimum is not None:
        off -= minimum.astype(np.float32, copy=False)
    off -= weights
    off *= off
    if importance is not None:
        off *= importance
    return total(off)


def inverse(scale: Array) -> Array:
    """1 / scale in fp32; 0 where the scale is 0, so that all codes become 0."""
    wide = scale.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        return np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)


def quotient(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, 0 where the denominator is not positive."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def to_fp16(scale: Array) -> Array:
    """Rounded as it is stored; too great ones become infinite, which the caller refuses."""
    with np.errstate(over="ignore"):
        return scale.astype(np.float16)


def clip_nearest(codes: Array, smallest: float, largest: float) -> Array:
    """Rounded to whole numbers in [smallest, largest], in place."""
    np.rint(codes, out=codes)
    return np.asarray(np.clip(codes, np.float32(smallest), np.float32(largest), out=codes))


def take_better(better: Array, *pairs: tuple[Array, Array]) -> None:
    """Overwrite the first of each pair by the second in the groups where ``better``."""
    for kept, own in pairs:
        np.copyto(kept, own, where=better)
