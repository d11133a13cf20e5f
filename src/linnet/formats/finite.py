# SPDX-License-Identifier: Apache-2.0
"""Whether a stored tensor holds NaN or infinity, at the speed of reading it."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError

_PIECE_ELEMENTS = 1 << 20
_EXPONENTS: dict[np.dtype[Any], tuple[type[Any], int]] = {
    np.dtype(np.float64): (np.uint64, 0x7FF0_0000_0000_0000),
    np.dtype(np.float32): (np.uint32, 0x7F80_0000),
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, 0x7C),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, 0x7F),  # no infinity, and NaN has every bit set
}
"""Type -> its bits as integers, and those that are all set in NaN and infinity, and in nothing else."""


def first_not_finite(array: npt.NDArray[Any]) -> tuple[int, ...] | None:
    """Index of the first element that is NaN or infinite; None if there is none, or numbers of the type never are."""
    found = _EXPONENTS.get(array.dtype)
    if found is None or array.size == 0:
        return None
    bits, mask = np.ascontiguousarray(array).reshape(-1).view(found[0]), found[0](found[1])
    for start in range(0, bits.size, _PIECE_ELEMENTS):
        piece = bits[start : start + _PIECE_ELEMENTS] & mask
        if piece.max() == mask:
            place = start + int(np.argmax(piece == mask))
            return tuple(int(each) for each in np.unravel_index(place, array.shape))
    return None


def check_finite(array: npt.NDArray[Any], where: str) -> None:
    """CheckpointError that says the first place of a NaN or an infinity."""
    place = first_not_finite(array)
    if place is not None:
        raise CheckpointError(f"{where} holds NaN or infinity, first {array[place]} at {list(place)}")
