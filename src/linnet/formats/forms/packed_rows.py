# SPDX-License-Identifier: Apache-2.0
"""Codes of several rows in one word, as HQQ and optimum-quanto pack them: a weight seen as rows of groups, row i beside
rows i + p, i + 2p ..., where p is how many rows of words there are."""

from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.schemes import LinearScheme, PackedWeight
from linnet.schemes.layouts import PACK_MINIMUM
from linnet.schemes.packing import pack_rows

Array = npt.NDArray[Any]


def apart(words: Array, bits: int, shifts: range) -> Array:
    """Unsigned [p, columns] -> uint8 [p * len(shifts), columns]: plane after plane, each moved down by its shift."""
    low, kind = 2**bits - 1, words.dtype.type
    return np.concatenate([(words >> kind(shift) & kind(low)).astype(np.uint8, copy=False) for shift in shifts])


def with_minimums(
    codes: Array, scales: Array, minimums: Array, scheme: LinearScheme, shape: tuple[int, int], shown: str
) -> PackedWeight:
    """A checked PackedWeight of codes [groups, group size], scales and minimums [groups, 1]: row after row."""
    arrays = {
        "weight_packed": pack_rows(codes.reshape(shape), scheme.weight.bits),
        "weight_scale": scales.reshape(shape[0], -1),
        "weight_minimum": minimums.reshape(shape[0], -1),
    }
    packed = PackedWeight(scheme, shape, PACK_MINIMUM, arrays)
    packed.check(shown)
    return packed
