# SPDX-License-Identifier: Apache-2.0
"""Weights in activation order: which group each column belongs to, the columns sorted by group, and the way back."""

from typing import Any

import numpy as np
import numpy.typing as npt

from linnet.errors import CheckpointError
from linnet.schemes import PackedWeight, pack
from linnet.schemes.packed_weight import COLUMN_ORDER

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


def scattered(packed: PackedWeight) -> dict[str, Array]:
    """Canonical arrays with the columns in their logical order again, and ``weight_g_idx``: as they are written."""
    order, size = packed.arrays[COLUMN_ORDER], packed.scheme.weight.group_size
    assert size is not None
    place = np.argsort(order)
    stored = packed.as_stored()
    codes = np.ascontiguousarray(stored.codes()[:, place])
    arrays = pack(codes, stored.scales(), stored.zero_points(), stored.scheme).arrays
    return {**arrays, "weight_g_idx": (place // size).astype(np.int32)}
