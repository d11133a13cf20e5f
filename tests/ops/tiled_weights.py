# SPDX-License-Identifier: Apache-2.0
"""Native views of weights that are nothing but tiles, and their products."""

from typing import Any

import numpy as np

from linnet.backends.cpu import _native, tiles
from linnet.schemes import PackedWeight

POOL = _native.ThreadPool(2)


def tile_memory(isa: str, view: Any) -> np.ndarray:
    """uint8 [tile bytes] at a multiple of 64, full of what no tile may keep."""
    size = _native.tile_bytes(isa, view)
    memory = np.full(size + 64, 0xA5, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:size]


def tiled(stored: PackedWeight, isa: str) -> tuple[Any, np.ndarray]:
    """A native view with its tiles, and what keeps them."""
    assert not tiles.lies_as_kernels_read(stored.scheme.weight, stored.layout)
    view = tiles.view(stored, None)
    memory = tile_memory(isa, view)
    tiles.fill(isa, POOL, view, stored, memory)
    view.use_tiles(isa, memory)
    return view, memory


def multiply(isa: str, view: Any, kind: Any, group_size: int, x: np.ndarray, parts: int = 1) -> np.ndarray:
    """fp32 [rows of x, outputs], in items of ``parts`` column units."""
    y = np.full((len(x), view.rows), np.nan, np.float32)
    _native.LinearRun(isa, POOL, view, kind, group_size, x, True).run(y, 0, len(x), parts)
    return y
