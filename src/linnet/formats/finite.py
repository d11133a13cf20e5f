# SPDX-License-Identifier: Apache-2.0
"""Whether a stored tensor holds NaN or infinity, at the speed of reading it."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.formats.dtypes import NAME_TO_NUMPY
from linnet.formats.header import TensorInfo

_EXPONENTS: dict[np.dtype[Any], tuple[type[Any], int]] = {
    np.dtype(np.float64): (np.uint64, 0x7FF0_0000_0000_0000),
    np.dtype(np.float32): (np.uint32, 0x7F80_0000),
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, 0x7C),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, 0x7F),  # no infinity, and NaN has every bit set
}
"""Type -> its bits as integers, and those that are all set in NaN and infinity, and in nothing else."""


def first_not_finite(values: npt.NDArray[Any]) -> int | None:
    """Where [n] elements hold NaN or infinity first; None if they do not, or numbers of the type never are."""
    found = _EXPONENTS.get(values.dtype)
    if found is None or values.size == 0:
        return None
    mask = found[0](found[1])
    exponents = values.view(found[0]) & mask
    return int(np.argmax(exponents == mask)) if exponents.max() == mask else None


def check_finite(piece: memoryview | bytes, start: int, info: TensorInfo, where: str) -> None:
    """CheckpointError that says the first place of a NaN or an infinity in bytes of a tensor from ``start`` on."""
    values = np.frombuffer(piece, NAME_TO_NUMPY[info.dtype])
    place = first_not_finite(values)
    if place is not None:
        index = [int(each) for each in np.unravel_index(start // values.itemsize + place, info.shape)]
        raise CheckpointError(f"{where} holds NaN or infinity, first {values[place]} at {index}")
