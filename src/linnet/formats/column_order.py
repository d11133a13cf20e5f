# SPDX-License-Identifier: Apache-2.0
"""Group indices of weights in activation order: which group each column belongs to, and the columns sorted by group."""

from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError

Array = npt.NDArray[Any]


def group_index(index: Array, size: int, columns: int, shown: str) -> Array:
    """The checked index, flat; ``size`` columns make a group. ``shown`` names the tensor in errors."""
    flat = index.reshape(-1)
    groups = columns // size
    if flat.size != columns or flat.dtype.kind != "i" or int(flat.min()) < 0 or int(flat.max()) >= groups:
        raise CheckpointError(f"{shown} must name one of {groups} groups for each of {columns} inputs")
    return flat


def sorted_columns(index: Array, size: int, columns: int, shown: str) -> Array:
    """int32: which input every sorted column is, columns of a group in their own order."""
    flat = group_index(index, size, columns, shown)
    if (np.bincount(flat, minlength=columns // size) != size).any():
        raise CheckpointError(f"{shown}: not every group has {size} columns")
    return np.argsort(flat, kind="stable").astype(np.int32)
